"""TileLoader's three sources: the same rows from slides, from shards and from arrays.

Pixels of lossless shards are bit-equal to what `extract_tiles` cuts; of JPEG shards
bit-equal to Pillow's decoder on the same bytes.
"""

import io
import pickle
import re
from copy import deepcopy

import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image

import stfast
from oracles import WORKERS
from oracles_dataset import write_dataset
from stfast.dataset import _layout

torch = pytest.importorskip("torch")
ArraySource, Dataset, TileLoader = stfast.ArraySource, stfast.Dataset, stfast.TileLoader

FIELDS = ("image", "genes", "coords", "slide", "label", "index")


@pytest.fixture(scope="module")
def labelled(slides):
    """The slides with a label at two of three spots."""
    slides = [adata.copy() for adata in slides]
    for number, adata in enumerate(slides):
        layers = np.array(["L1", "", "L2"], dtype=object)
        adata.obs["layer"] = layers[(np.arange(adata.n_obs) + number) % 3]
    return slides


@pytest.fixture(scope="module")
def tiles(labelled):
    cut = []
    for adata in labelled:
        path = next(iter(adata.uns["spatial"].values()))["metadata"]["source_image_path"]
        cut.append(stfast.extract_tiles(path, adata.obsm["spatial"], 16, span=21.3))
    return np.concatenate(cut)


@pytest.fixture(scope="module")
def roots(labelled, tiles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    return {
        encoding: write_dataset(folder / encoding, labelled, tiles, encoding=encoding)
        for encoding in ("png", "raw", "jpeg")
    }


def arrays(labelled, tiles):
    genes = np.concatenate([a.X.toarray() for a in labelled]).astype(np.float32)
    names = [f"s{number}" for number, a in enumerate(labelled) for _ in range(a.n_obs)]
    return ArraySource(
        tiles,
        genes,
        coords=np.concatenate([a.obsm["spatial"] for a in labelled]),
        slide=names,
        label=[label for a in labelled for label in a.obs["layer"]],
        gene_names=labelled[0].var_names.tolist(),
    )


def epoch(source, number=0, **options):
    """An epoch's fields, each as one array; sparse genes densely."""
    loader = TileLoader(source, **{"batch_size": 32, "device": "cpu"} | options)
    loader.set_epoch(number)
    batches = list(loader)
    columns = {}
    for name in FIELDS:
        parts = [getattr(batch, name) for batch in batches]
        parts = [part.to_dense() if name == "genes" else part for part in parts]
        columns[name] = np.concatenate([part.numpy() for part in parts])
    return columns


def assert_alike(found, expected, *, pixels=True):
    for name in FIELDS:
        if pixels or name != "image":
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", WORKERS)
def test_three_sources_yield_the_same_rows(labelled, tiles, roots, shuffle, workers):
    options = {"shuffle": shuffle, "seed": 3, "workers": workers}
    virtual = epoch(labelled, 1, label="layer", size=16, **options)
    assert sorted(virtual["index"].tolist()) == list(range(116))
    assert set(virtual["label"]) == {-1, 0, 1}
    assert_alike(epoch(arrays(labelled, tiles), 1, **options), virtual)
    for encoding in ("png", "raw"):
        assert_alike(epoch(Dataset(roots[encoding]), 1, **options), virtual)
    assert_alike(epoch(Dataset(roots["jpeg"]), 1, **options), virtual, pixels=False)


def test_jpeg_tiles_are_what_pillow_decodes(roots, tiles):
    dataset = Dataset(roots["jpeg"])
    found = epoch(dataset, shuffle=False)["image"]
    for row, (shard, offset, length) in enumerate(
        dataset.index.select("shard", "offset", "length").iter_rows()
    ):
        data = _layout.shard(dataset.root, shard).read_bytes()[offset : offset + length]
        np.testing.assert_array_equal(found[row], np.asarray(Image.open(io.BytesIO(data))))
    assert np.abs(found.astype(int) - tiles).max() < 60
    assert np.abs(found.astype(int) - tiles).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA"])
def test_png_tiles_of_any_kind_are_rgb(roots, tmp_path, mode, labelled, tiles):
    root = write_dataset(tmp_path / mode, labelled[2:], tiles[115:])
    picture = Image.fromarray(tiles[115]).convert(mode)
    coded = io.BytesIO()
    picture.save(coded, "png")
    shard = _layout.shard(root, 0)
    shard.write_bytes(coded.getvalue())
    table = pl.read_parquet(root / _layout.INDEX)
    length = pl.lit(len(coded.getvalue()), dtype=pl.UInt32)
    table.with_columns(offset=pl.lit(0, dtype=pl.UInt64), length=length).write_parquet(
        root / _layout.INDEX
    )
    want = np.asarray(
        picture.convert("L").convert("RGB") if mode == "LA" else picture.convert("RGB")
    )
    np.testing.assert_array_equal(epoch(Dataset(root))["image"][0], want)


def test_all_genes_come_sparse_and_chosen_ones_dense(labelled, tiles, roots):
    dense = epoch(labelled, size=16, label="layer")
    dataset = Dataset(roots["png"])
    assert_alike(epoch(dataset, genes="counts"), dense)
    assert_alike(epoch(labelled, size=16, genes="counts", label="layer"), dense)
    for source in (dataset, labelled):
        size = 16 if source is labelled else None
        found = epoch(source, genes=["g7", "g0"], size=size)
        np.testing.assert_array_equal(found["genes"], dense["genes"][:, [7, 0]])
    batch = next(iter(TileLoader(dataset, genes="counts", batch_size=10, device="cpu")))
    rows = batch.genes
    assert (rows.indptr.dtype, rows.indices.dtype, rows.values.dtype) == (
        torch.int64,
        torch.int32,
        torch.float32,
    )
    assert rows.n_genes == 9
    kept = torch.arange(10) % 3 > 0
    torch.testing.assert_close(rows.keep(kept).to_dense(), rows.to_dense()[kept])


def test_a_gene_that_a_slide_lacks_is_zero_among_all_genes(labelled):
    fewer = labelled[1][:, ["g8", "g1"]].copy()
    loader = TileLoader([labelled[0], fewer], genes="counts", size=8, shuffle=False, device="cpu")
    dense = torch.cat([batch.genes.to_dense() for batch in loader])
    assert loader.genes == [f"g{i}" for i in range(9)]
    np.testing.assert_array_equal(dense[70:, 8], fewer.X.toarray()[:, 0])
    assert (dense[70:, 2:8] == 0).all()


def test_rows_of_a_view_are_numbered_as_in_the_whole(roots):
    dataset = Dataset(roots["png"])
    every = epoch(dataset, shuffle=False)
    view = dataset.filter(slide="s1")
    found = epoch(view, shuffle=False)
    np.testing.assert_array_equal(found["index"], np.arange(70, 115))
    np.testing.assert_array_equal(found["image"], every["image"][70:115])
    some = epoch(view, shuffle=False, rows=[3, 1])
    np.testing.assert_array_equal(some["index"], [73, 71])
    np.testing.assert_array_equal(some["genes"], every["genes"][[73, 71]])


def test_a_loader_of_shards_can_be_pickled(roots):
    loader = TileLoader(Dataset(roots["png"]), device="cpu")
    again = pickle.loads(pickle.dumps(loader))
    torch.testing.assert_close(next(iter(again)).image, next(iter(loader)).image)


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(labelled, tiles, tmp_path):
    """A dataset of which tiles 5 (bytes), 60 (cut short) and 115 (other size) are bad."""
    root = write_dataset(tmp_path / "bad", labelled, tiles, encoding="jpeg")
    index = pl.read_parquet(root / _layout.INDEX)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "jpeg")
    for row, what in ((5, b"junk"), (115, small.getvalue())):
        shard, offset, length = index.row(row)[5:8]
        path = _layout.shard(root, shard)
        data, put = bytearray(path.read_bytes()), what[:length]
        data[offset : offset + len(put)] = put
        path.write_bytes(data)
    short = pl.when(pl.int_range(pl.len()) == 60).then(pl.col("length") // 2)
    index = index.with_columns(length=short.otherwise(pl.col("length")).cast(pl.UInt32))
    index.write_parquet(root / _layout.INDEX)
    return root


def test_a_bad_tile_raises_and_is_named(damaged):
    with pytest.raises(stfast.FormatError, match=r"the tile at byte \d+: expected JPEG.*\.tar"):
        list(TileLoader(Dataset(damaged), device="cpu"))


def test_bad_tiles_are_skipped_or_filled_counted_and_listed(damaged, roots):
    good = epoch(Dataset(roots["jpeg"]), shuffle=False)
    for policy in ("skip", "fill"):
        loader = TileLoader(Dataset(damaged), shuffle=False, on_error=policy, device="cpu")
        with pytest.warns(UserWarning, match=r"3 tiles could not be read \(" + policy):
            batches = list(loader)
        assert sorted(loader.bad) == [5, 60, 115]
        index = np.concatenate([batch.index.numpy() for batch in batches])
        image = np.concatenate([batch.image.numpy() for batch in batches])
        fine = ~np.isin(index, [5, 60, 115])
        assert len(index) == (113 if policy == "skip" else 116)
        np.testing.assert_array_equal(image[fine], good["image"][index[fine]])
        if policy == "fill":
            assert (image[~fine] == 255).all()


@pytest.mark.parametrize("off", [-10, -1, 5])
def test_a_raw_tile_of_another_length_is_refused(labelled, tiles, tmp_path, off):
    root = write_dataset(tmp_path / "raw", labelled, tiles, encoding="raw")
    index = pl.read_parquet(root / _layout.INDEX)
    length = (pl.col("length").cast(pl.Int64) + off).cast(pl.UInt32)
    index.with_columns(length=length).write_parquet(root / _layout.INDEX)
    with pytest.raises(stfast.FormatError, match="the tile at byte"):
        list(TileLoader(Dataset(root), device="cpu"))


@pytest.mark.parametrize("damage", ["bytes", "end"])
def test_virtual_tiles_of_bad_blocks_are_white_where_filled(labelled, tmp_path, damage):
    """Whichever of its blocks is bad, all of a tile is white; one block's tiles are not all."""
    adata, path = labelled[0].copy(), tmp_path / "picture.tif"
    adata.uns["spatial"] = deepcopy(adata.uns["spatial"])
    metadata = next(iter(adata.uns["spatial"].values()))["metadata"]
    pixels = np.asarray(Image.open(metadata["source_image_path"]).convert("RGB"))
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="deflate", photometric="rgb")
    metadata["source_image_path"] = str(path)
    good = epoch([adata], size=16, shuffle=False)["image"]
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    data = bytearray(path.read_bytes())
    offset, count = max(places) if damage == "end" else places[len(places) // 2]
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data[: offset + count // 2] if damage == "end" else data)
    loader = TileLoader(adata, size=16, shuffle=False, on_error="fill", device="cpu")
    with pytest.warns(UserWarning, match="tiles could not be read"):
        image = np.concatenate([batch.image.numpy() for batch in loader])
    bad = np.isin(np.arange(len(image)), list(loader.bad))
    assert bad.any()
    assert not bad.all()
    assert (image[bad] == 255).all()
    np.testing.assert_array_equal(image[~bad], good[~bad])


def test_an_index_that_points_beyond_a_shard_is_refused(roots, labelled, tiles, tmp_path):
    root = write_dataset(tmp_path / "beyond", labelled, tiles)
    table = pl.read_parquet(root / _layout.INDEX)
    table.with_columns(offset=pl.col("offset") + 10**9).write_parquet(root / _layout.INDEX)
    with pytest.raises(stfast.FormatError, match=r"expected \d+ bytes at offset"):
        list(TileLoader(Dataset(root), device="cpu"))


def test_arguments_that_do_not_fit_are_named(roots, tiles):
    dataset = Dataset(roots["png"])
    for options, message in (
        ({"size": 32}, "size: expected 16"),
        ({"span": 3}, "span: expected none"),
        ({"label": "layer"}, "label: expected none"),
        ({"genes": ["nope"]}, "genes: expected 'nope'"),
        ({"genes": "all"}, 'genes: expected names, "hvg" or "counts"'),
        ({"nvjpeg": True, "on_error": "skip"}, "nvjpeg"),
        ({"std": (1, 0, 1)}, "std"),
        ({"mean": (1, 0)}, "mean"),
        ({"dtype": torch.int8}, "dtype"),
        ({"sampler": "random"}, "sampler: expected one of"),
        ({"sampler": "block", "shuffle": False}, "sampler: expected shuffle=True"),
        ({"global_batch_size": 9, "rank": 0, "world_size": 2}, "multiple of 2 ranks"),
        ({"drop_last": False, "rank": 0, "world_size": 2}, "drop_last"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 to 1"),
        ({"rows": [True]}, "rows"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            TileLoader(dataset, device="cpu", **options)
    with pytest.raises(IndexError, match="rows: expected 0 to 115"):
        TileLoader(dataset, rows=[116], device="cpu")
    with pytest.raises(ValueError, match="genes: expected 116 rows"):
        ArraySource(tiles, np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        ArraySource(tiles.astype(float), np.zeros((116, 2), np.float32))


def test_a_gene_that_is_named_twice_is_two_equal_columns(labelled, roots):
    names = [labelled[0].var_names[i] for i in (3, 1, 3)]
    batch = next(iter(Dataset(roots["png"]).loader(genes=names, shuffle=False, device="cpu")))
    expected = np.concatenate([a[:, names].X.toarray() for a in labelled])[: len(batch)]
    assert expected.any()
    np.testing.assert_array_equal(batch.genes, expected)
