"""Where counts lie changes nothing: memory, h5ad, zarr, 10x HDF5, folders, stretches, slides."""

import logging

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import oracles
import stfast
from oracles import assert_same
from oracles_hvg import FLAVORS, RAW, adata_of, heavy_tailed, our_table
from stfast import highly_variable_genes
from stfast.hvg import source

N, GENES, TOP = 9000, 90, 15
"""Spots of three blocks of 4,096, the last one partial."""


@pytest.fixture(scope="module")
def big():
    return heavy_tailed(N, GENES, seed=4, umi=60.0)


@pytest.fixture
def short_stretches(monkeypatch):
    """A stretch is one block of rows."""
    monkeypatch.setattr(source, "_STRETCH_VALUES", 1)


def write_tenx(path, x, genes, barcodes):
    """A 10x HDF5 matrix, as cellranger lays it out: columns are barcodes."""
    csr = sparse.csr_matrix(x)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"] = csr.data.astype(np.int32), csr.indices.astype(np.int64)
        group["indptr"], group["shape"] = csr.indptr.astype(np.int64), np.array(x.shape[::-1])
        group["barcodes"] = np.array(barcodes, dtype="S")
        names = np.array(genes, dtype="S")
        features = group.create_group("features")
        features["name"], features["id"] = names, names
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(genes), dtype="S")


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("kind", ["h5ad", "zarr", "dense h5ad", "backed", "layer", "10x", "str"])
@pytest.mark.usefixtures("short_stretches")
@pytest.mark.filterwarnings("ignore:Writing zarr")
def test_a_file_gives_the_bits_of_memory(flavor, kind, big, tmp_path):
    adata = adata_of(big, flavor)
    expected = our_table(adata, flavor, TOP)
    path = tmp_path / ("slide.zarr" if kind == "zarr" else "slide.h5ad")
    options = {}
    if kind == "dense h5ad":
        adata.X = adata.X.toarray()
    if kind == "layer":
        threes = np.full(adata.shape, 3.0)
        adata = AnnData(threes, var=adata.var, layers={"counts": adata.X})
        options["layer"] = "counts"
    if kind == "10x":
        if flavor not in RAW:
            pytest.skip("10x files hold counts")
        path = tmp_path / "slide.h5"
        write_tenx(path, big, adata.var_names, [f"b{i}" for i in range(N)])
    elif kind == "zarr":
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    given = {"backed": lambda: anndata.read_h5ad(path, backed="r"), "str": lambda: str(path)}
    found = our_table(given.get(kind, lambda: path)(), flavor, TOP, **options)
    assert_same(found, expected)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_stretches_change_no_bit(flavor, big, monkeypatch):
    """Dense arrays come in stretches: of one block, of two, of all."""
    adata = adata_of(big, flavor, sparse_as=np.asarray)
    expected = our_table(adata_of(big, flavor), flavor, TOP)
    for values in (1, 2 * 4096 * GENES, 10**9):
        monkeypatch.setattr(source, "_STRETCH_VALUES", values)
        assert_same(our_table(adata, flavor, TOP), expected)


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.usefixtures("short_stretches")
def test_batches_on_disk_are_those_in_memory(flavor, big, tmp_path):
    adata = adata_of(big, flavor, batches=3)
    adata.write_h5ad(tmp_path / "a.h5ad")
    expected = our_table(adata, flavor, TOP, batch_key="batch")
    assert_same(our_table(tmp_path / "a.h5ad", flavor, TOP, batch_key="batch"), expected)


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "list of lists"])
def test_a_matrix_has_its_table_returned(kind):
    x = heavy_tailed(50, 30)
    given = {"csr": sparse.csr_matrix, "csc": sparse.csc_array, "dense": np.asarray}
    found = highly_variable_genes(given.get(kind, np.ndarray.tolist)(x), n_top_genes=5)
    expected = our_table(AnnData(x), "pearson_residuals", 5)
    assert list(found.index) == [str(i) for i in range(30)]
    assert_same(found, expected)
    subset = highly_variable_genes(x, n_top_genes=5, subset=True)
    assert_same(subset, expected[expected["highly_variable"]])


def test_a_backed_anndata_is_written_to(big, tmp_path):
    adata = adata_of(big, "pearson_residuals")
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert highly_variable_genes(backed, n_top_genes=TOP) is None
    assert backed.var["highly_variable"].sum() == TOP


def test_a_folder_of_a_slide_is_read_in_tissue(slide):
    adata = stfast.read(slide)
    adata = adata[adata.obs["in_tissue"] == 1].copy()
    found = highly_variable_genes(slide, n_top_genes=9)
    assert_same(found, our_table(adata, "pearson_residuals", 9))


# --- several slides ----------------------------------------------------------------------------


def three_slides():
    """Slides of one block each, with genes in other orders; two genes are not in all."""
    x = heavy_tailed(600, 60, seed=8)
    names = np.array([f"g{i}" for i in range(60)])
    orders = [np.arange(60), np.random.default_rng(0).permutation(60)[:59], np.arange(59, 0, -1)]
    slides = []
    for at, order in enumerate(orders):
        slide = AnnData(sparse.csr_matrix(x[at * 200 : (at + 1) * 200][:, order]))
        slide.var_names = names[order]
        slides.append(slide)
    return slides


def joined(slides):
    """The same spots in one AnnData, over the genes in common, by anndata."""
    options = {"keys": ["0", "1", "2"], "label": "slide", "index_unique": "-"}
    both = anndata.concat(slides, join="inner", **options)
    shared = [gene for gene in slides[0].var_names if gene in both.var_names]
    return both[:, shared].copy()


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("by_slide", [False, True])
def test_slides_together_are_one_table_over_shared_genes(flavor, by_slide, tmp_path):
    slides = three_slides()
    # Of bins of two genes all scores are ±1/√2, but for rounding.
    options = {"normalize": flavor not in RAW, "n_bins": 4}
    if by_slide:
        options["batch_key"] = "slide"
    if flavor.startswith("seurat_v3"):
        options["span"] = 0.9
    slides[1].write_h5ad(tmp_path / "s.h5ad")
    found = our_table([slides[0], tmp_path / "s.h5ad", slides[2]], flavor, TOP, **options)
    expected = our_table(joined(slides), flavor, TOP, **options)
    assert list(found.index) == list(expected.index)
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-9, atol=1e-12)
    named = dict(zip("abc", slides, strict=True))
    pd.testing.assert_frame_equal(our_table(named, flavor, TOP, **options), found)


def test_batches_that_are_numbers_in_one_slide_and_text_in_another_are_the_same():
    slides = three_slides()
    for at, slide in enumerate(slides):
        slide.obs["run"] = np.arange(slide.n_obs) % 2 + at % 2
    expected = highly_variable_genes(slides, n_top_genes=TOP, batch_key="run")
    slides[1].obs["run"] = slides[1].obs["run"].astype(str)
    found = highly_variable_genes(slides, n_top_genes=TOP, batch_key="run")
    assert_same(found, expected)


def test_a_spot_without_a_batch_among_numbered_categories_is_told():
    adata = three_slides()[0]
    run = pd.Series(np.arange(adata.n_obs) % 2, index=adata.obs_names).astype("category")
    adata.obs["run"] = run.where(np.arange(adata.n_obs) != 3)
    with pytest.raises(ValueError, match="expected a batch for each spot, got none for 1"):
        highly_variable_genes(adata, n_top_genes=TOP, batch_key="run")


def test_slides_that_share_no_genes_raise():
    one, other = AnnData(heavy_tailed(20, 9)), AnnData(heavy_tailed(20, 9))
    other.var_names = [f"h{i}" for i in range(9)]
    with pytest.raises(ValueError, match="slides: expected genes in common, got none in 2 slides"):
        highly_variable_genes([one, other], n_top_genes=3)
    # From 0.13 on, anndata's warnings of it point at these lines.
    with pytest.warns(UserWarning, match="Variable names are not unique"):
        twice = AnnData(heavy_tailed(20, 3), var=pd.DataFrame(index=["0", "1", "1"]))
    with pytest.raises(ValueError, match="slide 1: expected each gene once, got '1' again"):
        highly_variable_genes([one, twice], n_top_genes=3)
    with pytest.raises(ValueError, match="slides: expected at least one, got none"):
        highly_variable_genes([], n_top_genes=3)


# --- rows out of order -------------------------------------------------------------------------


@pytest.mark.parametrize("flavor", RAW)
@pytest.mark.usefixtures("short_stretches")
def test_genes_out_of_order_in_a_file_change_nothing(flavor, big, tmp_path):
    adata = adata_of(big, flavor)
    expected = our_table(adata, flavor, TOP)
    x = adata.X
    for start, end in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        x.indices[start:end] = x.indices[start:end][::-1].copy()
        x.data[start:end] = x.data[start:end][::-1].copy()
    x.has_sorted_indices = False
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert_same(our_table(tmp_path / "a.h5ad", flavor, TOP), expected)


def test_a_gene_twice_in_a_spot_is_added_and_said(caplog):
    x = sparse.csr_matrix(([1.0, 2, 4, 1], ([0, 1, 2, 2], [0, 1, 2, 0])), shape=(3, 3))
    twice = x.copy()
    twice.data = np.array([1.0, 2, 4, 1, 3])
    twice.indices = np.array([0, 1, 2, 0, 2], dtype=np.int32)
    twice.indptr = np.array([0, 1, 2, 5], dtype=np.int32)
    with caplog.at_level(logging.WARNING, "stfast"):
        found = highly_variable_genes(twice, n_top_genes=2)
    assert "counts: expected a gene once in a spot, got 1 repeated: added" in caplog.text
    x[2, 2] = 7
    assert_same(found, highly_variable_genes(x, n_top_genes=2))
    assert twice.nnz == 5


# --- bad files ---------------------------------------------------------------------------------


def spoilt_h5ad(path, spoil):
    AnnData(sparse.csr_matrix(heavy_tailed(50, 30))).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        spoil(file)


def set_indices(file):
    file["X/indices"][3] = 99


def set_indptr(file):
    file["X/indptr"][5] = 10**6


def cut_data(file):
    data = file["X/data"][:-3]
    del file["X/data"]
    file["X/data"] = data


def drop_genes(file):
    del file["X/indices"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (set_indices, "gene indices outside 0..30"),
        (set_indptr, "an indptr that does not rise"),
        (cut_data, "an indptr that does not rise to the number of values"),
        (drop_genes, "rows 0 to 50 of a sparse matrix"),
    ],
)
def test_damaged_rows_name_the_file(spoil, message, tmp_path):
    path = tmp_path / "bad.h5ad"
    spoilt_h5ad(path, spoil)
    with pytest.raises(stfast.FormatError, match=f"bad.h5ad: expected .*{message}"):
        highly_variable_genes(path, n_top_genes=3)


def test_files_that_hold_no_counts_are_refused_by_name(tmp_path):
    (tmp_path / "text.h5ad").write_text("no HDF5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for name in ("text.h5ad", "text.h5", "empty.h5"):
        with pytest.raises(stfast.FormatError, match=f"{name}: expected"):
            highly_variable_genes(tmp_path / name, n_top_genes=3)
    with pytest.raises(FileNotFoundError, match=r"gone\.h5ad"):
        highly_variable_genes(tmp_path / "gone.h5ad", n_top_genes=3)
    adata = AnnData(sparse.csc_matrix(heavy_tailed(20, 9)))
    adata.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(NotImplementedError, match=r"csc\.h5ad: expected rows compressed .CSR."):
        highly_variable_genes(tmp_path / "csc.h5ad", n_top_genes=3)
    with pytest.raises(KeyError, match=r"layer: expected one of .*got 'gone' .*csc\.h5ad"):
        highly_variable_genes(tmp_path / "csc.h5ad", n_top_genes=3, layer="gone")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.usefixtures("short_stretches")
def test_values_that_are_no_expression_name_the_file(value, big, tmp_path):
    """In the last stretch of a file."""
    adata = adata_of(big, "seurat_v3")
    adata.X.data[-1] = value
    adata.write_h5ad(tmp_path / "a.h5ad")
    for flavor in FLAVORS:
        with pytest.raises(ValueError, match=r"a\.h5ad: expected finite values of at least 0"):
            highly_variable_genes(tmp_path / "a.h5ad", flavor, 5, normalize=True)


def test_progress_counts_spots(big):
    seen = []
    highly_variable_genes(big, n_top_genes=TOP, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 2 * N


def test_a_real_slide_is_read_from_its_10x_file(real):
    path = real("visium/sr1/filtered_feature_bc_matrix.h5")
    scanpy = pytest.importorskip("scanpy")
    adata = scanpy.read_10x_h5(path)
    adata.var_names_make_unique()
    found = highly_variable_genes(path, n_top_genes=20)
    assert list(found.index) == list(adata.var_names)
    variance = oracles.pearson_variance(adata.X.toarray())
    np.testing.assert_allclose(found["residual_variances"], variance, rtol=1e-9, atol=1e-12)
