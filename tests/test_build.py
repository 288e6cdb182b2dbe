"""A dataset built of raw slides: each byte of its index against shards, pixels and counts."""

import hashlib
import io
import tarfile
import warnings

import anndata
import numpy as np
import polars as pl
import pytest
import zarr
from PIL import Image
from scipy import sparse

import stfast
from stfast.dataset import _stage

SETTINGS = {"bin_size": 8, "size": 24, "hvg": "pearson:5", "tiles": "png"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """In this process, unless a test says otherwise: a process takes seconds to begin."""
    monkeypatch.setenv("STFAST_WORKERS", "1")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three generated slides of Visium HD."""
    folder = tmp_path_factory.mktemp("raw")
    for seed, name in enumerate(("a", "b", "c")):
        stfast.synthesize_visium_hd(folder / name, side_um=80, n_genes=60, mpp=0.5, seed=seed)
    return pl.DataFrame(
        {
            "slide": ["b", "a", "c"],
            "path": [str(folder / name) for name in ("b", "a", "c")],
            "tissue": ["skin", None, "brain"],
        }
    )


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    report = stfast.build(raw, out, **SETTINGS, shard_bytes=60_000, workers=1)
    assert not report.failed
    assert report.staged == ["b", "a", "c"]
    return out


def digests(root):
    """A hash of each file of a dataset, but for what is staged, locks and times."""
    files = [(p, p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_file()]
    return {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in files
        if name.parts[0] not in ("staging", ".locks", "run.jsonl")
    }


def test_tiles_are_the_pixels_of_their_slides(raw, built):
    index = stfast.Dataset(built).index
    seen = 0
    for slide, path in raw.select("slide", "path").iter_rows():
        adata = stfast.read(path)
        rows = index.filter(slide=slide)
        assert sorted(rows["spot"]) == sorted(adata.obs_names)
        adata = adata[rows["spot"].to_list()]
        image = next(iter(adata.uns["spatial"].values()))["metadata"]["source_image_path"]
        factors = next(iter(adata.uns["spatial"].values()))["scalefactors"]
        assert np.array_equal(rows.select("x", "y").to_numpy(), adata.obsm["spatial"])
        assert set(rows["r"]) == {factors["spot_diameter_fullres"] / 2}
        tiles = stfast.extract_tiles(
            image, adata.obsm["spatial"], 24, span=factors["spot_diameter_fullres"]
        )
        for tile, (shard, start, length) in zip(
            tiles, rows.select("shard", "offset", "length").iter_rows(), strict=True
        ):
            data = (built / "tiles" / f"{shard:05}.tar").read_bytes()[start : start + length]
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), tile)
        seen += len(tiles)
    assert seen == index.height


def test_members_of_shards_are_the_rows_of_the_index(built):
    assert len(list((built / "tiles").iterdir())) > 1
    assert_members_are_rows(built)


def assert_members_are_rows(built):
    """Members of all shards, in order, are the rows of the index, named and placed by it."""
    index = stfast.Dataset(built).index
    members = []
    for shard in sorted((built / "tiles").iterdir()):
        with tarfile.open(shard) as tar:
            members += [(int(shard.stem), m.name, m.offset_data, m.size) for m in tar]
    assert [m[1] for m in members[::2]] == [f"{n:09}.png" for n in range(index.height)]
    assert [m[1] for m in members[1::2]] == [f"{n:09}.json" for n in range(index.height)]
    places = index.select("shard", "offset", "length").rows()
    assert [(m[0], *m[2:]) for m in members[::2]] == places


def test_counts_and_chosen_genes_are_those_of_the_slides(raw, built):
    dataset = stfast.Dataset(built)
    indptr, indices, values = (
        np.load(built / f"genes/counts/{name}.npy") for name in ("indptr", "indices", "values")
    )
    assert (indptr.dtype, indices.dtype) == (np.int64, np.uint16)
    shape = (len(dataset), len(dataset.genes))
    counts = sparse.csr_matrix((values.astype(int), indices.astype(np.int32), indptr), shape)
    assert counts.has_canonical_format
    index = dataset.index.with_row_index()
    for slide, path in raw.select("slide", "path").iter_rows():
        rows = index.filter(slide=slide)
        adata = stfast.read(path)
        adata = adata[rows["spot"].to_list()]
        part = counts[rows["index"].to_numpy()]
        named = [dataset.genes.index(gene) for gene in adata.var_names]
        assert (part[:, named] != adata.X).nnz == 0
        assert part.sum() == adata.X.sum()
        assert np.array_equal(rows["n_counts"], np.asarray(adata.X.sum(axis=1)).ravel())
        assert np.array_equal(rows["n_genes"], np.diff(adata.X.indptr))
        alone = stfast.hvg_rank_combined({slide: stfast.read(path)}, 5)
        wanted = dict(zip(alone.obs["spot"], alone.X, strict=True))
        for number, spot in rows.select("index", "spot").iter_rows():
            assert np.array_equal(dataset.hvg[number], wanted.get(spot, np.zeros(5)))
        genes = dataset.hvg_genes.filter(slide=slide).sort("rank")["gene"].to_list()
        assert genes == alone.uns["hvg_genes"].loc[slide].tolist()
        stored = anndata.read_zarr(built / "slides" / f"{slide}.zarr")
        assert (stored[adata.obs_names].X != adata.X).nnz == 0


def test_slides_are_kept_as_zarr_3_without_an_option_that_will_go(raw, built, tmp_path):
    assert zarr.open_group(built / "slides/a.zarr", mode="r").metadata.zarr_format == 3
    adata = stfast.read(raw["path"][0])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _stage._write_store(adata, tmp_path / "slide.zarr")
    assert [w for w in told if "setting will be removed" in str(w.message)] == []
    assert zarr.open_group(tmp_path / "slide.zarr", mode="r").metadata.zarr_format == 3


def test_spots_of_slides_are_mixed(built):
    slides = stfast.Dataset(built).index["slide"]
    assert (slides != slides.shift(1)).sum() > len(slides) / 3


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_do_not_depend_on_workers_nor_on_the_order_of_rows(raw, built, workers, tmp_path):
    stfast.build(raw.reverse(), tmp_path / "out", **SETTINGS, shard_bytes=60_000, workers=workers)
    assert digests(tmp_path / "out") == digests(built)


def test_a_finished_slide_is_not_redone_and_a_changed_one_is(raw, tmp_path):
    out, small = tmp_path / "out", raw[:1]
    assert stfast.build(small, out, **SETTINGS).staged == ["b"]
    first = digests(out)
    assert stfast.build(small, out, **SETTINGS).staged == []
    assert digests(out) == first
    assert stfast.build(raw[:2], out, **SETTINGS).staged == ["a"]
    report = stfast.build(small, out, **SETTINGS)
    assert (report.staged, report.dropped) == ([], ["a"])
    assert digests(out) == first
    assert stfast.build(raw[:2], out, **SETTINGS).staged == []
    assert (out / "slides/a.zarr").is_dir()
    assert stfast.build(small, out, **SETTINGS | {"size": 16}).staged == ["b"]


def test_a_slide_that_fails_stops_no_other(raw, tmp_path):
    table = pl.concat([raw[:1], raw[1:2].with_columns(path=pl.lit(str(tmp_path / "none")))])
    report = stfast.build(table, tmp_path / "out", **SETTINGS)
    assert list(report.failed) == ["a"]
    assert "FileNotFoundError" in report.failed["a"]
    assert set(stfast.Dataset(tmp_path / "out").index["slide"]) == {"b"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", ".hidden", " a"])
def test_names_that_are_no_file_names_are_told(raw, tmp_path, name):
    with pytest.raises(ValueError, match="expected a file name for a slide"):
        stfast.build(raw.with_columns(slide=pl.lit(name)), tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_slide_twice_is_told(raw, tmp_path):
    with pytest.raises(ValueError, match="each slide once, got 'b' again"):
        stfast.build(pl.concat([raw, raw[:1]]), tmp_path / "out", **SETTINGS)


def test_a_folder_of_something_else_is_left_alone(raw, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="expected an empty folder or one of a build"):
        stfast.build(raw, tmp_path, **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_builds_at_a_time_name_the_owner(raw, built):
    from stfast.dataset._lock import locked, part_lock

    with locked(part_lock(built, 1, 1)), pytest.raises(BlockingIOError, match="process"):
        stfast.build(raw, built, **SETTINGS)
