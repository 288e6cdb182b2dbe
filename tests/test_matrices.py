"""A matrix is a matrix: sparse matrices and arrays, dense ones, of every number type, anywhere.

Each public function that takes a matrix is asked with every kind of it, and answers what it
answers of CSR in 64 bits. No warning of scipy's or numpy's is caused on the way: the suite
makes those of our own lines errors, and `quiet` those of theirs that our lines cause.
"""

import re
import warnings
from typing import Any

import anndata
import awkward
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import oracles
import stfast
from oracles import assert_same
from stfast import convert, learn

TileLoader = stfast.TileLoader

FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]
SPARSE = {
    f"{name}_{kind}": getattr(sparse, f"{name}_{kind}")
    for name in FORMATS
    for kind in ("matrix", "array")
}
HELD = ["csr_matrix", "csc_matrix", "csr_array", "csc_array"]
"""What AnnData holds, beside dense."""
NUMBERS = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]
NUMBERS += [">i2", ">u4", ">i4", ">i8", ">u8", ">f2", ">f4", ">f8"]


def of_kind(dense, kind):
    return np.array(dense) if kind == "dense" else SPARSE[kind](dense)


def of_number(dense, number, layout):
    """Sparse values of types that scipy does not make itself are put in, as files have them."""
    values = np.asarray(dense).astype(number)
    if layout == "dense":
        return values
    held = SPARSE[layout](values.astype(values.dtype.newbyteorder("=").str.replace("f2", "f4")))
    held.data = held.data.astype(number)
    return held


@pytest.fixture
def quiet():
    """Every warning is an error, but anndata's of its own imports and names."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", module="anndata|pandas|torch|zarr")
        yield


@pytest.fixture
def spotted(tmp_path):
    adata = oracles.slide_with_picture(tmp_path, 3)
    adata.obs["array_row"], adata.obs["array_col"] = np.arange(70) // 10, np.arange(70) % 10
    adata.obs["in_tissue"] = 1
    return adata


# --- kinds -------------------------------------------------------------------------------------

COUNTS = np.random.default_rng(8).poisson(0.7, (70, 9))
PLACES: dict[str, Any] = {"rows": np.arange(70) // 10, "cols": np.arange(70) % 10, "factor": 3}
LABELS = np.arange(70) % 6 - 1

OF_MATRICES: dict[str, Any] = {
    "aggregate_bins": lambda m: tuple(stfast.aggregate_bins(m, **PLACES)),
    "aggregate_bins by labels": lambda m: tuple(stfast.aggregate_bins(m, labels=LABELS)),
    "highly_variable_genes": lambda m: stfast.highly_variable_genes(m, n_top_genes=4),
    "seurat_v3": lambda m: stfast.highly_variable_genes(m, "seurat_v3", 4),
    "gene_moments": lambda m: stfast.gene_moments(m).table,
}


@pytest.mark.parametrize("kind", [*SPARSE, "dense"])
@pytest.mark.parametrize("function", OF_MATRICES)
@pytest.mark.usefixtures("quiet")
def test_a_bare_matrix_may_be_of_any_kind(function, kind):
    ask = OF_MATRICES[function]
    assert_same(ask(of_kind(COUNTS, kind)), ask(sparse.csr_matrix(COUNTS)))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("layout", ["dense", "csr_matrix", "csr_array", "csc_matrix", "coo_array"])
@pytest.mark.parametrize("function", OF_MATRICES)
@pytest.mark.usefixtures("quiet")
def test_numbers_may_be_any_of_64_bits(function, layout, number):
    ask = OF_MATRICES[function]
    counts = COUNTS > 0 if number == "?" else COUNTS
    found, expected = ask(of_number(counts, number, layout)), ask(sparse.csr_matrix(counts * 1))
    if function.startswith("aggregate"):
        assert found[0].dtype.isnative
        np.testing.assert_array_equal(found[0].toarray(), expected[0].toarray())
        found, expected = found[1:], expected[1:]
    assert_same(found, expected)


@pytest.mark.parametrize("number", [np.longdouble, complex, np.complex64, object, "U1", "M8[s]"])
@pytest.mark.parametrize("function", OF_MATRICES)
def test_what_are_no_such_numbers_is_refused_by_name(function, number):
    bad = COUNTS.astype("M8[s]" if number == "M8[s]" else number)
    with pytest.raises(ValueError, match=re.escape(f"64 bits, got dtype {np.dtype(number)}")):
        OF_MATRICES[function](bad)
    if np.dtype(number).kind in "fc":
        for layout in (sparse.csr_matrix, sparse.coo_array):
            with pytest.raises(ValueError, match=f"got dtype {np.dtype(number)}"):
                OF_MATRICES[function](layout(bad))


@pytest.mark.parametrize("number", ["u8", ">u8"])
def test_counts_beyond_int64_are_refused_in_any_byte_order(number):
    counts = np.full((70, 2), 2**63, number)
    for ask in (OF_MATRICES["aggregate_bins"], OF_MATRICES["gene_moments"]):
        for matrix in (counts, of_number(counts, number, "csr_array")):
            with pytest.raises(ValueError, match="below 2\\*\\*63, got 9223372036854775808"):
                ask(matrix)


@pytest.mark.parametrize("function", OF_MATRICES)
def test_masked_numbers_are_not_taken_for_numbers(function):
    masked = np.ma.masked_equal(COUNTS, 1)
    with pytest.raises(ValueError, match="expected all numbers, got masked ones; fill them first"):
        OF_MATRICES[function](masked)
    assert_same(OF_MATRICES["gene_moments"](np.ma.array(COUNTS)), stfast.gene_moments(COUNTS).table)


def test_sparse_arrays_of_one_dimension_are_no_matrices():
    for ask in OF_MATRICES.values():
        with pytest.raises(ValueError, match="expected 2 dimensions, got 1"):
            ask(sparse.coo_array(np.ones(70)))


# --- AnnData -----------------------------------------------------------------------------------


def batches_of(adata, genes):
    loader = TileLoader(adata, genes=genes, batch_size=16, size=8, workers=1)
    return np.concatenate([np.asarray(dense(batch.genes)) for batch in loader])


def dense(genes):
    if not hasattr(genes, "indptr"):
        return genes
    parts = (genes.values.numpy(), genes.indices.numpy(), genes.indptr.numpy())
    return sparse.csr_matrix(parts, shape=(len(genes), genes.n_genes)).toarray()


def written(adata, tmp_path):
    convert.write_stimage(adata, tmp_path / "out", "s", technology="Visium")
    return (tmp_path / "out/Visium/gene_exp/s_count.csv").read_text()


def made(adata):
    assert adata is not None
    return adata.X


def binned(adata):
    found = stfast.aggregate_bins(adata, factor=3)
    return found.X.toarray(), found.layers["again"].toarray(), found.raw.X.toarray()


OF_ANNDATA: dict[str, Any] = {
    "aggregate_bins": lambda a, _: binned(a),
    "highly_variable_genes": lambda a, _: stfast.highly_variable_genes(
        a, n_top_genes=4, inplace=False
    ),
    "a layer": lambda a, _: stfast.gene_moments(a, layer="again").table,
    "hvg_rank_combined": lambda a, _: made(stfast.hvg_rank_combined([a, a.copy()], 4)),
    "hvg_overlap": lambda a, _: made(stfast.hvg_overlap({"a": a, "b": a.copy()}, 4)),
    "rasterize": lambda a, _: stfast.rasterize(a, ["g3", "g0"], scale=0.5)[:],
    "check_alignment": lambda a, _: stfast.check_alignment(a).scores.to_pandas(),
    "write_stimage": written,
    "TileLoader": lambda a, _: batches_of(a, ["g2", "g5"]),
    "TileLoader's counts": lambda a, _: batches_of(a, "counts"),
}


def same_answer(found, expected):
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            same_answer(one, other)
    else:
        assert_same(found, expected)


def holding(spotted, matrix):
    """The slide with another matrix, in a layer and as raw data too."""
    adata = AnnData(matrix, spotted.obs, spotted.var, spotted.uns, obsm=spotted.obsm)
    adata.layers["again"] = matrix.copy()
    adata.raw = adata.copy()
    return adata


@pytest.mark.parametrize("kind", [*HELD, "dense", ">i4", "f2", "u1", ">f8"])
@pytest.mark.parametrize("function", OF_ANNDATA)
@pytest.mark.usefixtures("quiet")
def test_a_slide_may_hold_any_kind(function, kind, spotted, tmp_path):
    ask, counts = OF_ANNDATA[function], spotted.X.toarray()

    held = of_kind(counts, kind) if kind in (*HELD, "dense") else counts.astype(kind)
    expected = ask(holding(spotted, sparse.csr_matrix(counts)), tmp_path)
    same_answer(ask(holding(spotted, held), tmp_path), expected)


def in_bytes_twice(counts, kind):
    """A matrix that has each count as two bytes, whose sum no byte holds, and the sums."""
    row, col = np.nonzero(counts)
    data = np.column_stack([np.full(len(row), 200), 60 + 9 * counts[row, col]]).ravel()
    summed = np.where(counts > 0, 260 + 9 * counts, 0)
    data, indices = data.astype(np.uint8), np.repeat(col, 2)
    if kind.startswith("coo"):
        return SPARSE[kind]((data, (np.repeat(row, 2), indices)), counts.shape), summed
    indptr = np.append(0, np.cumsum(2 * np.bincount(row, minlength=len(counts))))
    return SPARSE[kind](sparse.csr_array((data, indices, indptr), counts.shape)), summed


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_matrix"])
@pytest.mark.parametrize("function", OF_MATRICES)
@pytest.mark.filterwarnings("ignore:seurat_v3. expected means spread enough")
def test_bytes_twice_in_a_place_are_added_as_numbers(function, kind):
    twice, counts = in_bytes_twice(COUNTS, kind)
    found, expected = OF_MATRICES[function](twice), OF_MATRICES[function](counts)
    if function.startswith("aggregate"):
        np.testing.assert_array_equal(found[0].toarray(), expected[0].toarray())
        found, expected = found[1:], expected[1:]
    assert_same(found, expected)


@pytest.mark.parametrize("function", OF_ANNDATA)
def test_a_slide_may_hold_bytes_twice_in_a_place(function, spotted, tmp_path):
    twice, counts = in_bytes_twice(spotted.X.toarray(), "csr_matrix")
    ask = OF_ANNDATA[function]
    expected = ask(holding(spotted, sparse.csr_matrix(counts)), tmp_path)
    same_answer(ask(holding(spotted, twice), tmp_path), expected)


@pytest.mark.parametrize("kind", HELD)
def test_a_slide_is_left_as_it_was(kind, spotted):
    """Genes out of order and twice are put in order in a copy."""
    untidy = sparse.csr_array(
        (np.array([1, 2, 4]), np.array([2, 0, 2]), np.array([0, 3] + [3] * 69)), (70, 9)
    )
    held = SPARSE[kind](untidy) if kind.startswith("csr") else of_kind(COUNTS, kind)
    before = held.data.copy(), held.indices.copy(), held.indptr.copy()
    adata = AnnData(held, spotted.obs, spotted.var, spotted.uns, obsm=spotted.obsm)
    stfast.gene_moments(adata)
    batches_of(adata, "counts")
    stfast.aggregate_bins(adata, factor=2)
    for part, was in zip((adata.X.data, adata.X.indices, adata.X.indptr), before, strict=True):
        np.testing.assert_array_equal(part, was)


@pytest.mark.parametrize("kind", [*SPARSE, "dense"])
def test_arrays_of_tiles_take_genes_of_any_sparse_kind(kind):
    tiles = np.zeros((70, 4, 4, 3), np.uint8)
    genes = COUNTS.astype(np.float32)
    source = stfast.ArraySource(tiles, of_kind(genes, kind))
    (batch,) = TileLoader(source, batch_size=70, workers=1, shuffle=False)
    np.testing.assert_array_equal(np.asarray(dense(batch.genes)), genes)


def test_arrays_of_tiles_refuse_what_is_neither():
    with pytest.raises(
        ValueError, match="expected an array in memory or a scipy matrix, got DataF"
    ):
        stfast.ArraySource(np.zeros((3, 4, 4, 3), np.uint8), pd.DataFrame(np.ones((3, 2))))


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_array"])
def test_expression_to_predict_may_be_sparse(kind):
    rng = np.random.default_rng(2)
    x, y = rng.random((40, 5)), rng.poisson(1.0, (40, 3)).astype(float)
    expected = learn.predict_genes(x, y, genes=list("abc"))
    found = learn.predict_genes(x, of_kind(y, kind), genes=list("abc"))
    assert found.table.equals(expected.table)
    with pytest.raises(ValueError, match="real numbers, got dtype complex128"):
        learn.predict_genes(x, y.astype(complex), genes=list("abc"))


@pytest.mark.parametrize("number", [">i4", ">f4", "f2", ">f8", "u1", "?"])
@pytest.mark.parametrize("layout", ["csr_matrix", "dense"])
def test_files_hold_any_numbers_too(number, layout, tmp_path):
    counts = (COUNTS > 0) if number == "?" else COUNTS
    path = tmp_path / "a.h5ad"
    obs = pd.DataFrame({"array_row": PLACES["rows"], "array_col": PLACES["cols"]}).set_index(
        pd.Index([f"s{i}" for i in range(70)])
    )
    AnnData(of_number(counts, number, layout), obs).write_h5ad(path)
    expected = AnnData(sparse.csr_matrix(counts * 1), obs)
    backed = anndata.read_h5ad(path, backed="r")
    found = stfast.aggregate_bins(backed, factor=3).X
    assert found.dtype.isnative
    same = stfast.aggregate_bins(expected, factor=3).X.toarray()
    np.testing.assert_array_equal(found.toarray(), same)
    assert_same(stfast.gene_moments(path).table, stfast.gene_moments(expected).table)


# --- parts of AnnData that are no plain numbers ------------------------------------------------


@pytest.mark.filterwarnings("ignore:Support for Awkward Arrays")
def test_ragged_lists_of_obsm_are_left_out(spotted):
    rng = np.random.default_rng(0)
    spotted.obsm["ragged"] = awkward.Array([list(range(k)) for k in rng.integers(0, 4, 70)])
    spotted.obsm["even"] = awkward.Array(rng.random((70, 2)).tolist())
    spotted.obsm["complex"] = sparse.csr_matrix(np.ones((70, 2), complex))
    spotted.obsm["half"] = np.ones((70, 2), np.float16)
    spotted.obsm["some"] = pd.DataFrame(
        {"a": pd.array([1, None] * 35, "Int64"), "b": "text"}, index=spotted.obs_names
    )
    for by in ({"factor": 3}, {"labels": LABELS}):
        found = stfast.aggregate_bins(spotted, **by)
        assert sorted(found.obsm) == ["half", "some", "spatial"]
        assert (found.obsm["half"] == 1).all()
        assert list(found.obsm["some"]) == ["a"]


def either(yes, value, other):
    return np.array([value if one else other for one in yes], dtype=object)


TISSUE = {
    "boolean": lambda yes: pd.array(either(yes, True, None), "boolean"),
    "no": lambda yes: pd.array(either(yes, True, False), "boolean"),
    "Int8": lambda yes: pd.array(either(yes, 1, None), "Int8"),
    "Float64": lambda yes: pd.array(either(yes, 1.0, None), "Float64"),
    "NaN": lambda yes: np.where(yes, 1.0, np.nan),
    "object": lambda yes: either(yes, True, None),
    "text": lambda yes: pd.array(either(yes, "True", None), "string"),
    "text of NaN": lambda yes: either(yes, "1", "nan"),
    "category": lambda yes: pd.Categorical(either(yes, "1", "0")),
    "category of numbers": lambda yes: pd.Categorical(either(yes, 1, None)),
}


@pytest.mark.parametrize("told", TISSUE)
def test_a_square_of_which_nothing_is_known_is_in_no_tissue(told, spotted):
    yes = np.random.default_rng(6).random(70) < 0.3
    spotted.obs["in_tissue"] = yes.astype(int)
    expected = {
        "bins": stfast.aggregate_bins(spotted, factor=2).obs,
        "labels": stfast.aggregate_bins(spotted, labels=LABELS).obs,
        "alignment": stfast.check_alignment(spotted).scores,
    }
    spotted.obs["in_tissue"] = TISSUE[told](yes)
    assert_same(stfast.aggregate_bins(spotted, factor=2).obs, expected["bins"])
    assert_same(stfast.aggregate_bins(spotted, labels=LABELS).obs, expected["labels"])
    assert stfast.check_alignment(spotted).scores.equals(expected["alignment"])


def test_spots_of_a_file_whose_tissue_is_unknown_are_left_out(spotted, tmp_path):
    from stfast._spots import find_spots

    yes = np.arange(70) < 20
    spotted.obs["in_tissue"] = pd.array(np.where(yes, True, None), "boolean")
    spotted.write_h5ad(tmp_path / "a.h5ad")
    assert find_spots(None, tmp_path / "a.h5ad").names == list(spotted.obs_names[:20])


@pytest.mark.parametrize(("value", "named"), [("maybe", "'maybe'"), (2, "2"), ("-1", "-1")])
def test_what_says_neither_yes_nor_no_is_named(spotted, value, named):
    spotted.obs["in_tissue"] = [1 if isinstance(value, int) else "1", value] * 35
    with pytest.raises(ValueError, match=rf'obs\["in_tissue"\]: expected 1 or 0 .* got {named}$'):
        stfast.aggregate_bins(spotted, factor=2)


@pytest.mark.parametrize("kind", ["Int64", "UInt16", "Float64"])
def test_places_may_be_nullable_but_not_missing(kind, spotted):
    expected = stfast.aggregate_bins(spotted, factor=2)
    by_label = stfast.aggregate_bins(spotted, labels=LABELS)
    for name in ("array_row", "array_col"):
        spotted.obs[name] = spotted.obs[name].astype(kind)
    assert_same(stfast.aggregate_bins(spotted, factor=2), expected)
    labels = pd.array(LABELS, "Int64")
    assert_same(stfast.aggregate_bins(spotted, labels=labels), by_label)
    assert_same(stfast.aggregate_bins(spotted, labels=pd.Series(labels)), by_label)
    spotted.obs.iloc[5, spotted.obs.columns.get_loc("array_row")] = pd.NA
    with pytest.raises(ValueError, match="array_row: expected whole numbers, got none for 1"):
        stfast.aggregate_bins(spotted, factor=2)
    labels[3] = pd.NA
    with pytest.raises(ValueError, match="labels: expected whole numbers, got none for 1"):
        stfast.aggregate_bins(spotted, labels=labels)
