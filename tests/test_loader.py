"""TileLoader: every spot once, the same batches for any workers, and nothing left behind.

What is in a batch is compared with `extract_tiles` and with rows of the AnnData; the order,
with what a shuffle must do. Processes (spawned, forked) and threads are counted.
"""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
from scipy import sparse

import stfast
from oracles import WORKERS
from stfast import extract_tiles

torch = pytest.importorskip("torch")
TileLoader = stfast.TileLoader


def load(slides, epoch=0, **options):
    """An epoch as arrays: image, genes, coords, slide, index."""
    loader = TileLoader(slides, **{"size": 16, "batch_size": 32, "device": "cpu"} | options)
    loader.set_epoch(epoch)
    names = ("image", "genes", "coords", "slide", "index")
    batches = [[getattr(batch, name).numpy() for name in names] for batch in loader]
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


def assert_rows_belong_together(slides, found, size, span=21.3, genes=slice(None)):
    """Row i of each field is one spot: its tile, its counts, its place."""
    image, counts, coords, slide, index = found
    starts = np.cumsum([0, *(a.n_obs for a in slides)])
    for number, adata in enumerate(slides):
        here = slide == number
        rows = index[here] - starts[number]
        path = adata.uns["spatial"][f"s{number}"]["metadata"]["source_image_path"]
        xy = adata.obsm["spatial"][rows]
        np.testing.assert_array_equal(coords[here], xy.astype(np.float32))
        np.testing.assert_array_equal(image[here], extract_tiles(path, xy, size, span=span))
        np.testing.assert_array_equal(counts[here], adata.X[rows][:, genes].toarray())


# --- what a batch holds ------------------------------------------------------------------------


def test_a_batch_has_the_stated_types_and_shapes(slides):
    batch = next(iter(TileLoader(slides, size=16, batch_size=32, device="cpu")))
    assert len(batch) == 32
    found = {
        name: (getattr(batch, name).dtype, tuple(getattr(batch, name).shape))
        for name in ("image", "genes", "coords", "slide", "index")
    }
    assert found == {
        "image": (torch.uint8, (32, 16, 16, 3)),
        "genes": (torch.float32, (32, 9)),
        "coords": (torch.float32, (32, 2)),
        "slide": (torch.int32, (32,)),
        "index": (torch.int64, (32,)),
    }
    assert all(t.device.type == "cpu" and t.is_contiguous() for t in batch.tensors())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [16, 21])
def test_tiles_genes_and_places_of_a_row_are_one_spots(slides, shuffle, size):
    found = load(slides, size=size, shuffle=shuffle)
    assert_rows_belong_together(slides, found, size)
    if not shuffle:
        np.testing.assert_array_equal(found[4], np.arange(116))
        np.testing.assert_array_equal(found[3], np.repeat([0, 1, 2], [70, 45, 1]))


def test_a_span_given_is_that_of_every_slide(slides):
    assert_rows_belong_together(slides, load(slides, span=40), 16, span=40)


@pytest.mark.parametrize("batch_size", [1, 7, 116, 1000])
@pytest.mark.parametrize("prefetch", [1, 2, 50])
def test_every_spot_comes_once_an_epoch(slides, batch_size, prefetch):
    for epoch in (0, 1):
        index = load(slides, epoch, batch_size=batch_size, prefetch=prefetch, size=2)[4]
        np.testing.assert_array_equal(np.sort(index), np.arange(116))


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "lengths"),
    [
        (50, False, [50, 50, 16]),
        (50, True, [50, 50]),
        (58, True, [58, 58]),
        (58, False, [58, 58]),
        (200, False, [116]),
        (200, True, []),
    ],
)
def test_the_last_batch_is_short_or_left_out(slides, batch_size, drop_last, lengths):
    with nullcontext() if lengths else pytest.warns(UserWarning, match="116 spots fill no global"):
        loader = TileLoader(
            slides, size=2, batch_size=batch_size, drop_last=drop_last, device="cpu"
        )
    assert len(loader) == len(lengths)
    assert loader.n_spots == 116
    assert [len(batch) for batch in loader] == lengths


def test_genes_are_those_marked_or_those_named(slides):
    marked = [adata.copy() for adata in slides]
    for adata in marked:
        adata.var["highly_variable"] = adata.var_names.isin(["g2", "g5"])
    loader = TileLoader(marked, device="cpu")
    assert loader.genes == ["g2", "g5"]
    assert_rows_belong_together(slides, load(marked), 16, genes=[2, 5])
    named = load(slides, genes=["g7", "g0", "g3"])
    assert_rows_belong_together(slides, named, 16, genes=[7, 0, 3])


@pytest.mark.parametrize("kind", ["csc", "dense", "float64", "unsorted columns"])
def test_counts_may_be_of_any_kind(slides, kind):
    adata = slides[0].copy()
    x = adata.X.copy()
    x.indices, x.data = x.indices[::-1].copy(), x.data[::-1].copy()
    x.indptr = x.indptr[-1] - x.indptr[::-1]
    other = {
        "csc": adata.X.tocsc(),
        "dense": adata.X.toarray(),
        "float64": adata.X / 3.0,
        "unsorted columns": x,
    }[kind]
    expected = np.asarray(other.todense() if sparse.issparse(other) else other, np.float32)
    adata.X = other
    _, genes, _, _, index = load(adata)
    np.testing.assert_array_equal(genes, expected[index])


def test_several_slides_may_differ_in_the_order_of_genes(slides):
    turned = [slides[0], slides[1][:, ::-1].copy()]
    found = load(turned, genes=[f"g{i}" for i in range(9)])
    assert_rows_belong_together([slides[0], slides[1]], found, 16)


# --- the order ---------------------------------------------------------------------------------


def test_batches_are_the_same_for_any_workers_and_any_cache(slides):
    expected = load(slides, workers=1)
    for options in [{"workers": n} for n in WORKERS] + [{"cache_bytes": 1}, {"cache_bytes": 0}]:
        for one, other in zip(load(slides, **options), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_order_depends_on_seed_and_epoch_alone(slides):
    orders = {
        (seed, epoch): load(slides, epoch, seed=seed, size=1)[4]
        for seed, epoch in itertools.product([0, 1, -1, 2**63], [0, 1, 2])
    }
    for key, order in orders.items():
        again = load(slides, key[1], seed=key[0], size=1, batch_size=5, prefetch=4)[4]
        np.testing.assert_array_equal(again, order)
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_iterating_again_is_the_next_epoch(slides):
    loader = TileLoader(slides, size=1, device="cpu")
    passes = [np.concatenate([b.index.numpy() for b in loader]) for _ in range(3)]
    for epoch, order in enumerate(passes):
        np.testing.assert_array_equal(order, load(slides, epoch, size=1)[4])
    loader.set_epoch(1)
    again = np.concatenate([b.index.numpy() for b in loader])
    np.testing.assert_array_equal(again, passes[1])


def test_a_shuffle_mixes_well():
    """Where an item lands is uniform, neighbours part, and epochs do not resemble each other."""
    from stfast import _core

    n, epochs = 997, 200
    orders = np.tile(np.arange(n), (epochs, 1))
    for epoch in range(epochs):
        _core.epoch_order(n, 5, epoch, orders[epoch], 1)
        assert (np.sort(orders[epoch]) == np.arange(n)).all()
    first = orders[:, :10].ravel()
    tenths = np.bincount(first * 10 // n, minlength=10)
    assert tenths.min() > 140
    assert tenths.max() < 260
    following = (np.diff(orders, axis=1) == 1).sum(axis=1).mean()
    assert following < 3
    resemblance = np.corrcoef(orders[:50])[np.triu_indices(50, 1)]
    assert np.abs(resemblance).max() < 0.2
    assert abs(resemblance.mean()) < 0.02


# --- what is refused ---------------------------------------------------------------------------


def without(adata, *keys):
    adata = adata.copy()
    place = adata.uns["spatial"]["s0"]
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return adata


def test_slides_that_lack_something_are_told_so(slides):
    unplaced = slides[0].copy()
    del unplaced.obsm["spatial"]
    cases = {
        "slides: expected at least one, got none": [],
        "expected a full-resolution image, got none": without(
            slides[0], "metadata", "source_image_path"
        ),
        "expected 'spot_diameter_fullres'": without(
            slides[0], "scalefactors", "spot_diameter_fullres"
        ),
        'expected "spatial", got none': unplaced,
    }
    for message, bad in cases.items():
        with pytest.raises(ValueError, match=message):
            TileLoader(bad, device="cpu")


def test_spots_outside_or_nowhere_are_refused_at_once(slides):
    for value, error, message in [
        (-5.0, IndexError, "picture-0: expected centers within 150 × 180 pixels.*at row 3"),
        (np.nan, ValueError, "expected finite coordinates, got .*at row 3"),
    ]:
        adata = slides[0].copy()
        adata.obsm["spatial"][3, 0] = value
        with pytest.raises(error, match=message):
            TileLoader(adata, device="cpu")


def test_a_picture_that_is_gone_is_named(slides):
    adata = slides[0].copy()
    adata.uns["spatial"]["s0"]["metadata"]["source_image_path"] = "/nowhere/gone.tif"
    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        TileLoader(adata, device="cpu")


def test_genes_that_do_not_fit_are_refused(slides):
    with pytest.raises(ValueError, match="genes: expected 'XIST' in slide 0, got no such gene"):
        TileLoader(slides, genes=["g1", "XIST"], device="cpu")
    other = slides[1].copy()
    other.var["highly_variable"] = other.var_names == "g1"
    with pytest.raises(ValueError, match="expected the same genes marked in all slides"):
        TileLoader([slides[0], other], device="cpu")
    twice = slides[0].copy()
    twice.var_names = ["g0"] * 9
    with pytest.raises(ValueError, match="genes"):
        TileLoader(twice, genes=["g0"], device="cpu")


@pytest.mark.parametrize(
    "option",
    [
        {"size": 0},
        {"size": 1.5},
        {"span": -1},
        {"span": np.nan},
        {"batch_size": 0},
        {"batch_size": 0.5},
        {"prefetch": 0},
        {"workers": 0},
        {"cache_bytes": -1},
    ],
    ids=str,
)
def test_bad_numbers_are_named(slides, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        list(TileLoader(slides, device="cpu", **option))
