"""Slides as anndata.experimental.read_lazy gives them: matrices of dask's, tables in the file."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.experimental import read_lazy
from scipy import sparse

import oracles
import stfast
from oracles import assert_same
from stfast import convert


@pytest.fixture(scope="module")
def squares():
    """A slide of squares with all parts that a file can have."""
    rng = np.random.default_rng(5)
    n, genes = 2400, 12
    x = sparse.csr_matrix(rng.poisson(0.4, (n, genes)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "in_tissue": pd.array(rng.integers(0, 2, n), "Int64"),
            "array_row": np.arange(n) // 60,
            "array_col": np.arange(n) % 60,
            "batch": pd.Categorical(np.where(np.arange(n) % 2, "a", "b")),
            "cell": np.arange(n) % 50 - 1,
        },
        index=[f"s{i}" for i in range(n)],
    )
    adata = AnnData(
        x, obs, pd.DataFrame({"kind": ["rna"] * genes}, [f"g{i}" for i in range(genes)])
    )
    adata.layers["dense"] = x.toarray()
    adata.layers["csc"] = x.tocsc()
    adata.raw = adata.copy()
    adata.obsm["spatial"] = np.column_stack([obs["array_col"], obs["array_row"]]) * 3.0 + 1.5
    adata.obsm["table"] = pd.DataFrame({"a": rng.random(n)}, adata.obs_names)
    adata.obsm["sparse"] = x[:, :3].copy()
    adata.varm["PCs"] = rng.random((genes, 2))
    adata.varp["pairs"] = sparse.csr_matrix(np.eye(genes))
    factors = {"bin_size_um": 2.0, "spot_diameter_fullres": 3.0}
    image = rng.integers(0, 255, (6, 5, 3)).astype(np.uint8)
    adata.uns["spatial"] = {"lib": {"scalefactors": factors, "images": {"hires": image}}}
    return adata


@pytest.fixture(scope="module", params=["h5ad", "zarr"])
def stored(request, squares, tmp_path_factory):
    path = tmp_path_factory.mktemp("lazy") / f"squares.{request.param}"
    getattr(squares, f"write_{request.param}")(path)
    read = anndata.read_h5ad if request.param == "h5ad" else anndata.read_zarr
    return path, read(path)


@pytest.mark.filterwarnings("ignore:Writing zarr", "ignore:Consolidated metadata")
@pytest.mark.parametrize("by", [{"bin_size": 8}, {"labels": "cell"}])
def test_bins_of_a_lazy_slide_are_those_in_memory(stored, by):
    path, memory = stored
    found, expected = (
        stfast.aggregate_bins(read_lazy(path), **by),
        stfast.aggregate_bins(memory, **by),
    )
    assert_same(found, expected)
    assert_same(found.raw.X, expected.raw.X)
    assert_same(found.raw.var, expected.raw.var)
    for name in ("dense", "csc"):
        assert_same(found.layers[name], expected.layers[name])
    for name in ("table", "sparse"):
        assert_same(found.obsm[name], expected.obsm[name])
    assert_same(found.varm["PCs"], expected.varm["PCs"])
    assert_same(found.varp["pairs"], expected.varp["pairs"])
    pictures = [each.uns["spatial"]["lib"]["images"]["hires"] for each in (found, expected)]
    assert_same(*pictures)
    assert (
        found.uns["spatial"]["lib"]["scalefactors"]
        == (expected.uns["spatial"]["lib"]["scalefactors"])
    )


@pytest.mark.parametrize("layer", [None, "dense", "csc"])
def test_genes_of_a_lazy_slide_are_those_in_memory(stored, layer):
    path, memory = stored
    for options in ({}, {"batch_key": "batch"}, {"subset": True}):
        asked = {"n_top_genes": 4, "layer": layer, "inplace": False, **options}
        expected = stfast.highly_variable_genes(memory, **asked)
        assert_same(stfast.highly_variable_genes(read_lazy(path), **asked), expected)
    moments = stfast.gene_moments(read_lazy(path), layer=layer)
    assert_same(moments.table, stfast.gene_moments(memory, layer=layer).table)


def test_a_lazy_slide_is_marked_and_cut(stored):
    path, memory = stored
    lazy, memory = read_lazy(path), memory.copy()
    for adata in (lazy, memory):
        stfast.highly_variable_genes(adata, n_top_genes=4)
    marked = lazy.var.to_memory()["highly_variable"].tolist()
    assert marked == memory.var["highly_variable"].tolist()
    for adata in (lazy, memory):
        stfast.highly_variable_genes(adata, n_top_genes=4, subset=True)
    assert list(lazy.var_names) == list(memory.var_names)
    np.testing.assert_array_equal(lazy.X.compute().toarray(), memory.X.toarray())


def test_a_slide_without_its_index_has_its_own_names(stored):
    path, memory = stored
    lazy = read_lazy(path, load_annotation_index=False)
    table = stfast.highly_variable_genes(lazy, n_top_genes=4, inplace=False)
    assert list(table.index) == list(memory.var_names)


def test_a_lazy_slide_is_saved(stored, tmp_path):
    path, memory = stored
    convert.save(read_lazy(path), tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(found.X.toarray(), memory.X.toarray())
    assert_same(found.obs, memory.obs)


def counts_written(adata, tmp_path):
    convert.write_stimage(adata, tmp_path / "out", "s", technology="Visium")
    return (tmp_path / "out/Visium/gene_exp/s_count.csv").read_text()


def batches_of(adata, _):
    loader = stfast.TileLoader(adata, genes=["g2", "g5"], label="layer", batch_size=16, size=8)
    batches = list(loader)
    return [(batch.genes.tolist(), batch.label.tolist(), batch.image.tolist()) for batch in batches]


OTHERS = {
    "rasterize": lambda a, _: stfast.rasterize(a, ["g3", "g0"], scale=0.5)[:].tolist(),
    "check_alignment": lambda a, _: stfast.check_alignment(a).scores.rows(),
    "write_stimage": counts_written,
    "TileLoader": batches_of,
}


@pytest.mark.parametrize("function", OTHERS)
@pytest.mark.parametrize("held", ["sparse", "dense"])
def test_who_holds_the_matrix_takes_lazy_slides_too(function, held, tmp_path):
    adata = oracles.slide_with_picture(tmp_path, 3)
    adata.obs["in_tissue"] = pd.array([True, None] * 35, "boolean")
    adata.obs["layer"] = pd.Categorical(["L1", "L2"] * 35)
    if held == "dense":
        adata.X = adata.X.toarray()
    adata.write_h5ad(tmp_path / "a.h5ad")
    expected = OTHERS[function](anndata.read_h5ad(tmp_path / "a.h5ad"), tmp_path)
    assert OTHERS[function](read_lazy(tmp_path / "a.h5ad"), tmp_path) == expected


def test_parts_of_dask_beside_tables_in_memory_are_computed(squares):
    import dask.array as da

    expected = stfast.aggregate_bins(squares, bin_size=8)
    lazy = squares.copy()
    chunks = da.from_array(squares.obsm["sparse"].toarray(), chunks=(500, 2))
    lazy.obsm["sparse"] = chunks.map_blocks(sparse.csr_matrix)
    lazy.obsm["spatial"] = da.from_array(squares.obsm["spatial"], chunks=(700, 2))
    lazy.varm["PCs"] = da.from_array(squares.varm["PCs"])
    found = stfast.aggregate_bins(lazy, bin_size=8)
    assert_same(found, expected)
    assert_same(found.obsm["sparse"], expected.obsm["sparse"])
    assert_same(found.varm["PCs"], expected.varm["PCs"])
