"""Tiles: where a window lies, what it is resized to, and what damage does.

A window's pixels are those of a slice of the picture; a tile of another size is what Pillow
makes of that slice, bit for bit. Blocks are then cut short, bent and filled with lies; the
mutations run in a Python of their own, because what they look for is a crash.
"""

import itertools
from functools import partial

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import oracles
from oracles import WORKERS, at_any_workers
from stfast import extract_tiles, open_image, thumbnail

HEIGHT, WIDTH = 90, 130


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One picture in the forms that are decoded differently."""
    folder = tmp_path_factory.mktemp("tiles")
    data = oracles.picture(HEIGHT, WIDTH)
    for codec in ("deflate", "lzw", "zstd", "jpeg"):
        for name, grid in {"tiles": {"tile": (32, 32)}, "strips": {"rowsperstrip": 16}}.items():
            path = folder / f"{codec}-{name}.tif"
            tifffile.imwrite(path, data, photometric="rgb", compression=codec, **grid)
    tifffile.imwrite(folder / "raw-strip.tif", data, photometric="rgb")
    Image.fromarray(data).save(folder / "plain.png")
    Image.fromarray(data).save(folder / "plain.jpg")
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """A picture whose pixels say where they are: (column, row, 7)."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.tif"
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    data = np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)
    tifffile.imwrite(path, data, photometric="rgb", tile=(16, 32), compression="deflate")
    return path


# --- where windows lie -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "size", "first"),
    [
        (10.0, 4, 8),
        (10.49, 4, 8),
        (10.5, 4, 9),
        (10.5, 5, 8),
        (10.0, 5, 8),
        (10.99, 5, 8),
        (11.0, 5, 9),
        (10.5, 1, 10),
        (10.0, 1, 10),
        (2.0, 4, 0),
        (np.nextafter(10.5, 0), 4, 8),
    ],
)
def test_a_window_starts_at_the_floor_of_its_left_edge_plus_a_half(ramp, x, size, first):
    columns, rows = extract_tiles(ramp, [[x, 20.5], [20.5, x]], size)
    assert columns[0, :, 0].tolist() == list(range(first, first + size))
    assert rows[:, 0, 1].tolist() == list(range(first, first + size))


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 40),
    n=st.integers(0, 30),
    fill=st.sampled_from([0, 128, 255]),
)
def test_plain_tiles_equal_slices_of_the_picture(ramp, seed, size, n, fill):
    rng = np.random.default_rng(seed)
    centers = rng.uniform(0, 1, (n, 2)) * (WIDTH, HEIGHT)
    centers = np.where(rng.random((n, 1)) < 0.5, np.round(2 * centers) / 2, centers)
    found = at_any_workers(lambda w: extract_tiles(ramp, centers, size, fill=fill, workers=w))
    assert found.shape == (n, size, size, 3)
    assert found.dtype == np.uint8
    data = oracles.pixels(ramp)
    for tile, center in zip(found, centers, strict=True):
        np.testing.assert_array_equal(tile, oracles.tile(data, center, size, fill=fill))


def test_a_centre_may_lie_on_any_edge(ramp):
    corners = list(itertools.product([0, WIDTH], [0, HEIGHT]))
    data = oracles.pixels(ramp)
    for tile, corner in zip(extract_tiles(ramp, corners, 20, fill=9), corners, strict=True):
        np.testing.assert_array_equal(tile, oracles.tile(data, corner, 20, fill=9))


def test_a_window_larger_than_the_picture_is_filled_around_it(files):
    data = oracles.pixels(files["plain.png"])
    tile = extract_tiles(files["plain.png"], [[5, 5]], 600)[0]
    np.testing.assert_array_equal(tile, oracles.tile(data, (5, 5), 600))


def test_no_centres_give_no_tiles(files):
    for none in (np.empty((0, 2)), np.empty((0, 2), int)):
        assert extract_tiles(files["plain.png"], none, 8).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("name", ["jpeg-tiles.tif", "lzw-strips.tif", "plain.png", "raw-strip.tif"])
def test_many_overlapping_tiles_equal_the_oracle(files, name):
    data = oracles.pixels(files[name])
    centers = np.random.default_rng(0).uniform(0, 1, (300, 2)) * (WIDTH, HEIGHT)
    found = at_any_workers(lambda n: extract_tiles(files[name], centers, 24, workers=n))
    for tile, center in zip(found, centers, strict=True):
        np.testing.assert_array_equal(tile, oracles.tile(data, center, 24))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@given(seed=st.integers(0, 2**32), size=st.integers(1, 60))
def test_parts_of_jpeg_blocks_are_those_of_the_whole(tmp_path_factory, subsampling, seed, size):
    """Only the columns and rows that tiles show are decoded; they must be bit for bit the same."""
    path = tmp_path_factory.getbasetemp() / f"parts-{subsampling}.tif"
    if not path.exists():
        arguments = {"level": 90, "subsampling": subsampling, "outcolorspace": "ycbcr"}
        options = {"compression": "jpeg", "compressionargs": arguments, "tile": (128, 160)}
        tifffile.imwrite(path, oracles.picture(300, 420), photometric="rgb", **options)
    centers = np.random.default_rng(seed).uniform(0, 1, (3, 2)) * (420, 300)
    found = at_any_workers(lambda n: extract_tiles(path, centers, size, workers=n))
    data = oracles.pixels(path)
    for tile, center in zip(found, centers, strict=True):
        np.testing.assert_array_equal(tile, oracles.tile(data, center, size))


# --- other sizes -------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 70),
    span=st.one_of(st.integers(1, 150), st.floats(0.3, 150)),
)
def test_resized_tiles_equal_pillows_bicubic(files, seed, size, span):
    rng = np.random.default_rng(seed)
    centers = rng.uniform(0, 1, (4, 2)) * (WIDTH, HEIGHT)
    path = files["lzw-tiles.tif"]
    found = at_any_workers(lambda n: extract_tiles(path, centers, size, span=span, workers=n))
    data = oracles.pixels(path)
    for tile, center in zip(found, centers, strict=True):
        np.testing.assert_array_equal(tile, oracles.tile(data, center, size, span))


@pytest.mark.parametrize(("size", "span"), [(224, 29.2), (224, 448), (32, 31), (31, 32), (7, 90)])
def test_resized_tiles_of_hard_edges_equal_pillows(tmp_path, size, span):
    """Black against white overshoots: the filter must clip as Pillow clips."""
    path = tmp_path / "edges.png"
    checks = (np.indices((200, 200)) // 7).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(path)
    centers = [[100, 100], [3.5, 3.5], [190, 20]]
    found = extract_tiles(path, centers, size, span=span)
    for tile, center in zip(found, centers, strict=True):
        np.testing.assert_array_equal(tile, oracles.tile(oracles.pixels(path), center, size, span))


REDUCTIONS = [
    (32, 64, 1),
    (32, 65, 1),
    (32, 127, 1),
    (32, 128, 2),
    (48, 333.3, 2),
    (16, 700, 2),
    (64, 64, 0),
    (64, 30, 0),
]
"""Size, span, and the level that suits them where levels are halves."""


@pytest.mark.parametrize("shape", [(512, 448), (509, 451)])
def test_tiles_of_a_pyramid_equal_pillows_resize_of_the_box(tmp_path, shape):
    path = tmp_path / "pyramid.tif"
    levels = [oracles.picture(shape[0] // k, shape[1] // k, seed=k) for k in (1, 2, 4)]
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            kind = {"subifds": 2} if number == 0 else {"subfiletype": 1}
            tiff.write(level, tile=(64, 64), photometric="rgb", **kind)
    image = open_image(path)
    centers = np.random.default_rng(1).uniform(0, 1, (6, 2)) * shape[::-1]
    for size, span, wanted in REDUCTIONS:
        number = image.levels.index(image.best_level(span / size))
        assert number == wanted or shape != (512, 448)
        call = partial(extract_tiles, image, centers, size, span=span)
        found = at_any_workers(lambda n, call=call: call(workers=n))
        down = image.levels[number].downsample
        for tile, center in zip(found, centers, strict=True):
            expected = oracles.reduced_tile(levels[number], down, center, size, span)
            np.testing.assert_array_equal(tile, expected)


# --- out, progress, thumbnail ------------------------------------------------------------------


def test_out_is_filled_and_handed_back(files, tmp_path):
    expected = extract_tiles(files["plain.png"], [[40, 40], [50, 50]], 16)
    shape = expected.shape
    for out in (np.empty(shape, np.uint8), np.memmap(tmp_path / "t", np.uint8, "w+", shape=shape)):
        assert extract_tiles(files["plain.png"], [[40, 40], [50, 50]], 16, out=out) is out
        np.testing.assert_array_equal(out, expected)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((1, 8, 8, 3), np.uint8), r"array \(2, 8, 8, 3\), got uint8 \(1, 8, 8, 3\)"),
        (np.empty((2, 8, 8, 3), np.int8), "got int8"),
        (np.empty((2, 3, 8, 8), np.uint8), r"got uint8 \(2, 3, 8, 8\)"),
        (np.empty((2, 8, 8, 3), np.uint8, order="F"), "C-ordered"),
        (np.empty((2, 8, 8, 6), np.uint8)[..., ::2], "C-ordered"),
        (read_only(np.empty((2, 8, 8, 3), np.uint8)), "writeable"),
        ([[0]], "got list"),
    ],
)
def test_an_out_that_does_not_fit_raises(files, out, message):
    with pytest.raises(ValueError, match=f"out: expected a.*{message}"):
        extract_tiles(files["plain.png"], [[40, 40], [50, 50]], 8, out=out)


def test_progress_ends_at_the_number_of_tiles(files):
    for span in (None, 20):
        told = []
        centers = [[40, 40]] * 50
        extract_tiles(files["lzw-tiles.tif"], centers, 8, span=span, progress=told.append)
        assert told == sorted(told)
        assert told[-1] == 50


@pytest.mark.parametrize(
    ("shape", "longest"), [((300, 500), 100), ((500, 300), 499), ((60, 90), 2000)]
)
def test_a_thumbnail_is_the_picture_reduced(tmp_path, shape, longest):
    path = tmp_path / "t.png"
    y, x = np.mgrid[: shape[0], : shape[1]]
    data = np.stack([x * 255 / shape[1], y * 255 / shape[0], np.full(shape, 90)], axis=-1)
    Image.fromarray(data.astype(np.uint8)).save(path)
    found, scale = thumbnail(path, longest)
    assert found.dtype == np.uint8
    assert max(found.shape) <= longest
    assert scale == pytest.approx(min(1.0, longest / max(shape)), rel=0.02)
    np.testing.assert_allclose(found.shape[:2], np.multiply(shape, scale), atol=1)
    small = Image.fromarray(data.astype(np.uint8)).resize(
        found.shape[1::-1], Image.Resampling.BICUBIC
    )
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(found[inner], np.asarray(small)[inner].astype(int), atol=6)


def test_a_thumbnail_of_a_thin_picture_has_pixels(tmp_path):
    Image.new("RGB", (5000, 1)).save(tmp_path / "thin.png")
    found, _ = thumbnail(tmp_path / "thin.png", 300)
    assert min(found.shape) > 0


@pytest.mark.parametrize("longest", [0, -5, np.nan])
def test_a_thumbnail_of_no_size_raises(files, longest):
    with pytest.raises(ValueError, match="longest"):
        thumbnail(files["plain.png"], longest)


def test_an_opened_image_serves_one_call_after_another(files):
    image = open_image(files["jpeg-tiles.tif"])
    first = extract_tiles(image, [[40, 40]], 16)
    np.testing.assert_array_equal(extract_tiles(image, [[40, 40]], 16), first)


# --- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[5.0, np.nan]], r"expected finite coordinates, got \(5.0, nan\) at row 0 \(1 such\)"),
        ([[5, 5], [np.inf, 5]], r"at row 1 \(1 such\)"),
        ([5, 5], r"expected shape \(n, 2\), got \(2,\)"),
        ([[5, 5, 5]], r"expected shape \(n, 2\), got \(1, 3\)"),
        ([], r"expected shape \(n, 2\)"),
        ([["a", "b"]], "could not convert"),
    ],
)
def test_bad_centres_raise(files, bad, message):
    with pytest.raises(ValueError, match=message):
        extract_tiles(files["plain.png"], bad, 8)


@pytest.mark.parametrize("x", [1e300, -1e300, 2.0**63])
def test_a_centre_absurdly_far_away_raises(files, x):
    for workers in WORKERS:
        with pytest.raises(ValueError, match=r"window: expected a finite corner within.*tile 1"):
            extract_tiles(files["plain.png"], [[5, 5], [x, 5], [x, 6]], 8, workers=workers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: expected 1 to 65535 pixels, got 0"),
        ({"size": -1}, "size.*got -1"),
        ({"size": 1.5}, "size.*got 1.5"),
        ({"size": 65_536}, "size.*got 65536"),
        ({"size": True}, "size.*got True"),
        ({"size": "8"}, "size"),
        ({"span": 0}, "span: expected a positive number of pixels, got 0"),
        ({"span": -3.5}, "span.*got -3.5"),
        ({"span": np.nan}, "span.*got nan"),
        ({"span": 1e300}, "span"),
        ({"span": "8"}, "span"),
        ({"fill": 256}, "fill: expected a grey level from 0 to 255, got 256"),
        ({"fill": -1}, "fill.*got -1"),
        ({"fill": 0.5}, "fill.*got 0.5"),
        ({"fill": np.nan}, "fill"),
        ({"workers": 0}, "workers: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_sides_raise(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        extract_tiles(files["plain.png"], [[5, 5]], **{"size": 8} | arguments)
