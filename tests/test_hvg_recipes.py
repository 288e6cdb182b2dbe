"""The paper's two matrices of genes, against scanpy's steps on dense tables as it ran them."""

import json
import warnings

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pytest
from anndata import AnnData
from scipy import sparse

import stfast
from oracles import WORKERS, assert_same, tree
from oracles_hvg import heavy_tailed
from stfast import hvg_overlap, hvg_rank_combined
from stfast.hvg import source

TOP, GENES = 12, 400


def slides():
    """Three slides with genes of their own, in orders of their own, some spots empty."""
    made = {}
    for at, name in enumerate("xyz"):
        x = heavy_tailed(120 + 10 * at, GENES, seed=at, umi=900.0)
        x[at::17] = 0
        genes = np.array([f"g{i}" for i in range(GENES)])
        genes[at * 3 : at * 3 + 3] = [f"{name}{i}" for i in range(3)]
        order = np.random.default_rng(at).permutation(GENES)
        slide = AnnData(sparse.csr_matrix(x[:, order]))
        slide.var_names, slide.obs_names = genes[order], [f"s{i}" for i in range(len(x))]
        made[name] = slide
    return made


def dense(slide):
    """As the paper reads a slide: a dense table."""
    return AnnData(slide.X.toarray().astype(np.float64), slide.obs, slide.var)


def rank_combined(slide, n_top):
    """Steps 1 to 4 of the paper's code for one slide: matrix, genes, spots."""
    scanpy = pytest.importorskip("scanpy")
    adata = dense(slide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.filter_cells(adata, min_genes=1)
        scanpy.experimental.pp.highly_variable_genes(adata, n_top_genes=n_top)
        order = adata.var["highly_variable_rank"].dropna().sort_values().index
        adata = adata[:, order].copy()
        scanpy.pp.normalize_total(adata)
        scanpy.pp.log1p(adata)
    return adata.X, list(order), list(adata.obs_names)


def overlap(named, n_top):
    scanpy = pytest.importorskip("scanpy")
    first, *others = named.values()
    shared = [g for g in first.var_names if all(g in slide.var_names for slide in others)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = {name: dense(slide[:, shared].copy()) for name, slide in named.items()}
        adata = anndata.concat(parts, index_unique="-")
        scanpy.pp.filter_cells(adata, min_genes=1)
        scanpy.pp.filter_genes(adata, min_cells=1)
        scanpy.pp.normalize_total(adata)
        scanpy.pp.log1p(adata)
        scanpy.pp.highly_variable_genes(adata, n_top_genes=n_top)
    return adata[:, adata.var["highly_variable"]].copy()


@pytest.fixture(params=["memory", "files"])
def given(request, tmp_path, monkeypatch):
    """The slides in memory, or in files read a block at a time."""
    if request.param == "memory":
        return slides()
    monkeypatch.setattr(source, "_STRETCH_VALUES", 1)
    for name, slide in slides().items():
        slide.write_h5ad(tmp_path / f"{name}.h5ad")
    return [tmp_path / f"{name}.h5ad" for name in "xyz"]


def test_ranks_combined_are_the_papers(given):
    found = hvg_rank_combined(given, TOP)
    assert found.X.dtype == np.float32
    assert list(found.var_names) == [str(i) for i in range(TOP)]
    assert "a column is a rank, not a gene" in found.uns["note"]
    for name, slide in slides().items():
        matrix, genes, spots = rank_combined(slide, TOP)
        mine = found[found.obs["slide"] == name]
        assert list(found.uns["hvg_genes"].loc[name]) == genes
        assert list(mine.obs["spot"]) == spots
        assert list(mine.obs_names) == [f"{name}_{spot}" for spot in spots]
        np.testing.assert_allclose(mine.X, matrix, rtol=1e-6)


def test_overlap_is_the_papers(given):
    found, expected = hvg_overlap(given, TOP), overlap(slides(), TOP)
    assert found.X.dtype == np.float32
    assert list(found.var_names) == list(expected.var_names)
    assert list(found.obs["spot"]) == [name.rsplit("-", 1)[0] for name in expected.obs_names]
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-6)
    for column in ("means", "dispersions"):
        np.testing.assert_allclose(found.var[column], expected.var[column], rtol=1e-6)


@pytest.mark.parametrize("recipe", [hvg_rank_combined, hvg_overlap])
def test_the_answer_is_the_same_for_any_workers(recipe):
    first, *others = (recipe(slides(), TOP, workers=n) for n in WORKERS)
    for other in others:
        assert_same(other.X, first.X)
        assert_same(other.var, first.var)


@pytest.mark.parametrize("recipe", [hvg_rank_combined, hvg_overlap])
@pytest.mark.parametrize("suffix", [".parquet", ".zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr", "ignore:Consolidated metadata")
def test_a_file_holds_what_memory_would(recipe, suffix, tmp_path):
    path = tmp_path / f"genes{suffix}"
    for _ in range(2):  # the second time over the first
        assert recipe(slides(), TOP, output=path) is None
    assert tree(tmp_path)[0] == path.name
    expected = recipe(slides(), TOP)
    if suffix == ".parquet":
        frame = pl.read_parquet(path)
        assert frame.columns == ["slide", "spot", *expected.var_names]
        np.testing.assert_array_equal(frame.drop("slide", "spot").to_numpy(), expected.X)
        about = json.loads(pl.read_parquet_metadata(path)["stfast"])
        assert about["format_version"] == 1
        if recipe is hvg_rank_combined:
            assert about["hvg_genes"]["y"] == list(expected.uns["hvg_genes"].loc["y"])
            assert about["note"] == expected.uns["note"]
    else:
        stored = anndata.read_zarr(path)
        np.testing.assert_array_equal(stored.X, expected.X)
        pd.testing.assert_frame_equal(stored.var, expected.var, check_dtype=False)
        assert list(stored.obs_names) == list(expected.obs_names)
        assert list(stored.obs["slide"]) == list(expected.obs["slide"])
        if recipe is hvg_rank_combined:
            assert (stored.uns["hvg_genes"].to_numpy() == expected.uns["hvg_genes"]).all(axis=None)


def test_progress_counts_slides():
    for recipe, total in ((hvg_rank_combined, 3), (hvg_overlap, 6)):
        seen = []
        recipe(slides(), TOP, progress=seen.append)
        assert seen == list(range(1, total + 1))


@pytest.mark.parametrize("recipe", [hvg_rank_combined, hvg_overlap])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s["y"].X.data.__imul__(-1), "slide y: expected finite values of at least 0"),
        (lambda s: setattr(s["y"], "X", s["y"].X * 0.5), "slide y: expected raw counts, got val"),
        (lambda s: s.clear(), "slides: expected at least one, got none"),
    ],
)
@pytest.mark.parametrize("suffix", [None, ".parquet", ".zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr")
def test_a_bad_slide_is_named_and_nothing_is_written(*, recipe, spoil, message, suffix, tmp_path):
    named = slides()
    spoil(named)
    output = tmp_path / f"genes{suffix}" if suffix else None
    with pytest.raises(ValueError, match=message):
        recipe(named, TOP, output=output)
    assert tree(tmp_path) == []


def test_slides_without_enough_are_refused():
    named = slides()
    with pytest.raises(ValueError, match="slide x: expected at least 401 genes, got 400"):
        hvg_rank_combined(named, GENES + 1)
    with pytest.raises(ValueError, match="n_top_genes: expected an integer of at least 1, got 0"):
        hvg_rank_combined(named, 0)
    empty = AnnData(sparse.csr_matrix((20, 30)))
    with pytest.raises(ValueError, match="slide 0: expected counts, got none in 20 spots"):
        hvg_rank_combined([empty], 5)
    with pytest.raises(ValueError, match="slides: expected at least 2 spots with counts, got 0"):
        hvg_overlap([empty], 5)
    with pytest.raises(ValueError, match=r"output: expected a name ending in \.parquet or \.zarr"):
        hvg_overlap(named, 5, output="genes.csv")
    with pytest.raises(FileNotFoundError, match="gone"):
        hvg_overlap(["gone.h5ad"], 5)


def test_genes_of_a_real_slide(real):
    adata = stfast.read_st(real("st/mob11"))
    found = hvg_rank_combined({"mob11": adata})
    matrix, genes, _ = rank_combined(adata, 128)
    ours = list(found.uns["hvg_genes"].loc["mob11"])
    # Ties may be in another order; those of the real slide are few.
    same = [a == b for a, b in zip(ours, genes, strict=True)]
    assert np.mean(same) > 0.9
    np.testing.assert_allclose(found.X[:, same], matrix[:, same], rtol=1e-5)
