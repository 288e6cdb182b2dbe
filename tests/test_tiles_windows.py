"""Tiles: filters, borders, the paper's rounding, µm, damage, and grids over tissue."""

import itertools

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import oracles
import stfast
from oracles import WORKERS, at_any_workers
from stfast import FormatError, extract_tiles, open_image, tissue_grid

HEIGHT, WIDTH = 90, 130


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "picture.tif"
    options = {"photometric": "rgb", "compression": "zstd", "tile": (32, 16)}
    tifffile.imwrite(path, oracles.picture(HEIGHT, WIDTH), **options)
    return path


# --- filters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["box", "bilinear", "bicubic", "lanczos"])
@given(seed=st.integers(0, 2**32), size=st.integers(1, 60), span=st.integers(1, 120))
def test_each_filter_is_pillows(path, name, seed, size, span):
    centers = np.random.default_rng(seed).uniform(0, 1, (3, 2)) * (WIDTH, HEIGHT)
    found = extract_tiles(path, centers, size, span=span, resample=name)
    filter_ = Image.Resampling[name.upper()]
    for tile, center in zip(found, centers, strict=True):
        cut = oracles.tile(oracles.pixels(path), center, span)
        resized = Image.fromarray(cut).resize((size, size), filter_)
        expected = cut if size == span else np.asarray(resized)
        np.testing.assert_array_equal(tile, expected)


@pytest.mark.parametrize("span", [14, 28, 56])
def test_a_reduced_ramp_keeps_its_place(tmp_path, span):
    """Half-pixel rule: the mean of a window of a ramp is the ramp at the window's centre."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    tile = extract_tiles(tmp_path / "ramp.png", [[100.0, 32.0]], 7, span=span)[0]
    step = span / 7
    expected = 100 - span / 2 + (np.arange(7) + 0.5) * step - 0.5
    np.testing.assert_allclose(tile[3, :, 0], expected, atol=0.51)


# --- borders -----------------------------------------------------------------------------------


def visible(center, side):
    """The rows and columns of the picture that a window shows, and how many are missing."""
    left, top = (int(np.floor(c - side / 2 + 0.5)) for c in center)
    rows = slice(max(top, 0), min(top + side, HEIGHT))
    cols = slice(max(left, 0), min(left + side, WIDTH))
    before, after = (
        (rows.start - top, cols.start - left),
        (top + side - rows.stop, left + side - cols.stop),
    )
    return rows, cols, list(zip(before, after, strict=True))


@pytest.mark.parametrize("border", ["edge", "reflect"])
@pytest.mark.parametrize("size", [40, 17])
@given(seed=st.integers(0, 2**32), side=st.sampled_from([40, 150, 9]))
def test_borders_are_numpys_pad_of_what_is_visible(path, border, size, seed, side):
    centers = np.random.default_rng(seed).uniform(-0.1, 1.1, (5, 2)) * (WIDTH, HEIGHT)
    call = {"span": side, "border": border, "valid": np.empty(5, np.float32)}
    found = at_any_workers(lambda n: extract_tiles(path, centers, size, workers=n, **call))
    picture = oracles.pixels(path)
    for tile, center, valid in zip(found, centers, call["valid"], strict=True):
        rows, cols, missing = visible(center, side)
        part = picture[rows, cols] if rows.start < rows.stop and cols.start < cols.stop else None
        if part is None:
            assert (tile == 255).all()
            assert valid == 0
            continue
        whole = np.pad(part, [*missing, (0, 0)], mode=border)
        assert whole.shape == (side, side, 3)
        resized = Image.fromarray(whole).resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(tile, whole if size == side else np.asarray(resized))
        assert valid == np.float32(part[..., 0].size / side**2)


def test_windows_outside_are_filled_counted_and_said(path):
    centers = [[50, 40], [-500, 40], [50, 1e6], [0, 0]]
    valid = np.empty(4, np.float32)
    tiles = extract_tiles(path, centers, 20, fill=3, valid=valid)
    assert valid.tolist() == [1, 0, 0, 0.25]
    assert (tiles[1:3] == 3).all()
    with pytest.warns(
        UserWarning, match=r"picture\.tif: 2 of 4 windows lie wholly outside 130 × 90"
    ):
        np.testing.assert_array_equal(extract_tiles(path, centers, 20, fill=3), tiles)


@pytest.mark.parametrize(
    "bad", [np.empty(3, np.float32), np.empty(2), np.empty((2, 1), np.float32)]
)
def test_a_valid_that_does_not_fit_raises(path, bad):
    with pytest.raises(
        ValueError, match=r"valid: expected a writeable C-ordered float32 array \(2,\)"
    ):
        extract_tiles(path, [[5, 5], [6, 6]], 8, valid=bad)


# --- the paper's windows -----------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), r=st.one_of(st.floats(0.6, 40), st.sampled_from([10.5, 12.25])))
def test_pil_crop_is_pillows_crop(path, seed, r):
    """The recipe of STimage-1K4M: each edge rounded half to even, black outside."""
    rng = np.random.default_rng(seed)
    centers = np.round(rng.uniform(-0.1, 1.1, (6, 2)) * (WIDTH, HEIGHT) * 4) / 4
    call = {"span": 2 * r, "mode": "pil-crop", "valid": np.empty(6, np.float32)}
    found = at_any_workers(lambda n: extract_tiles(path, centers, 24, workers=n, **call))
    image = Image.fromarray(oracles.pixels(path))
    for tile, (x, y) in zip(found, centers, strict=True):
        crop = image.crop((x - r, y - r, x + r, y + r))
        expected = (
            crop if crop.size == (24, 24) else crop.resize((24, 24), Image.Resampling.BICUBIC)
        )
        np.testing.assert_array_equal(tile, np.asarray(expected))


def test_tiles_of_their_windows_own_size_must_agree(path):
    centers = [[50.25, 40.25], [50.0, 40.25]]
    with pytest.raises(ValueError, match="size: expected the side of a tile where windows differ"):
        extract_tiles(path, centers, None, span=21, mode="pil-crop")
    found = extract_tiles(path, centers[:1], None, span=21)
    np.testing.assert_array_equal(found, extract_tiles(path, centers[:1], 21))


# --- µm ----------------------------------------------------------------------------------------


def test_microns_become_pixels_by_the_files_word_or_the_callers(tmp_path):
    path = tmp_path / "mpp.tif"
    options = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, oracles.picture(90, 130), photometric="rgb", **options)
    expected = extract_tiles(path, [[60, 40]], 16, span=40)
    np.testing.assert_array_equal(extract_tiles(path, [[60, 40]], 16, span_um=20), expected)
    found = extract_tiles(path, [[60, 40]], 16, span_um=10, mpp=0.25)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="span: expected pixels or µm, got span=4 and span_um=2"):
        extract_tiles(path, [[60, 40]], 16, span=4, span_um=2)


def test_microns_without_a_pixels_size_say_how_to_give_it(path):
    with pytest.raises(
        ValueError, match=r"picture\.tif: expected µm per pixel.*give mpp= \(--mpp\)"
    ):
        extract_tiles(path, [[5, 5]], 8, span_um=20)


# --- damage ------------------------------------------------------------------------------------


@pytest.fixture
def damaged(path, tmp_path):
    """The picture with its second and tenth block bent, and which pixels these are."""
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        starts, lengths = tiff.pages.first.dataoffsets, tiff.pages.first.databytecounts
    lost = np.zeros((96, 144), bool)
    for block in (1, 10):
        content[starts[block] : starts[block] + lengths[block]] = bytes(lengths[block])
        row, col = divmod(block, 9)
        lost[row * 32 : row * 32 + 32, col * 16 : col * 16 + 16] = True
    bent = tmp_path / "bent.tif"
    bent.write_bytes(content)
    return bent, lost[:HEIGHT, :WIDTH]


@pytest.mark.parametrize("span", [20, 33])
def test_damage_is_filled_counted_and_listed(path, damaged, span):
    bent, lost = damaged
    centers = np.array(list(itertools.product(range(10, WIDTH, 17), range(10, HEIGHT, 17))), float)
    valid = np.empty(len(centers), np.float32)
    picture = np.where(lost[..., None], 9, oracles.pixels(path)).astype(np.uint8)
    options = {"span": span, "fill": 9, "on_error": "fill", "valid": valid}
    for workers in WORKERS:
        with pytest.warns(
            UserWarning, match=r"bent\.tif: (\d+) of .* tiles lie on damaged"
        ) as said:
            found = extract_tiles(bent, centers, 20, workers=workers, **options)
        marked = 0
        for tile, center, share in zip(found, centers, valid, strict=True):
            np.testing.assert_array_equal(tile, oracles.tile(picture, center, 20, span, fill=9))
            left, top = (int(np.floor(c - span / 2 + 0.5)) for c in center)
            bad = lost[max(top, 0) : top + span, max(left, 0) : left + span]
            marked += bad.any()
            good = bad.size - bad.sum()
            assert share == pytest.approx(good / span**2)
        assert f"{marked} of {len(centers)} tiles" in str(said[0].message)
        assert "block 0,1" in str(said[0].message)


def test_damage_raises_unless_told_otherwise(damaged):
    for workers in WORKERS:
        with pytest.raises(FormatError, match=r"block 0,1.*bent\.tif"):
            extract_tiles(damaged[0], [[20, 10], [30, 40]], 20, workers=workers)


def test_a_damaged_pass_fills_what_comes_after(tmp_path):
    data = oracles.picture(1200, 1003)
    path = tmp_path / "pass.tif"
    options = {"photometric": "rgb", "compression": "zstd", "rowsperstrip": 1200}
    tifffile.imwrite(path, data, **options)
    path.write_bytes(path.read_bytes()[:-400_000])
    centers = [[500, 20], [500, 1180], [40, 1190]]
    valid = np.empty(3, np.float32)
    first = None
    for workers in WORKERS:
        with pytest.warns(UserWarning, match="2 of 3 tiles lie on damaged blocks"):
            found = extract_tiles(path, centers, 20, on_error="fill", valid=valid, workers=workers)
        first = found if first is None else first
        np.testing.assert_array_equal(found, first)
    np.testing.assert_array_equal(found[0], oracles.tile(data, centers[0], 20))
    assert valid.tolist() == [1, 0, 0]


# --- grids -------------------------------------------------------------------------------------


def blob(tmp_path):
    """An empty slide with a disc of tissue, and which pixels are tissue."""
    y, x = np.mgrid[:600, :800]
    disc = (x - 300) ** 2 + (y - 280) ** 2 < 180**2
    rng = np.random.default_rng(0)
    picture = np.where(disc[..., None], (170, 80, 150), (242, 241, 243)) + rng.integers(
        -4, 5, (600, 800, 3)
    )
    Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "blob.png")
    return tmp_path / "blob.png", disc


@pytest.mark.parametrize(
    ("span", "step", "least"), [(50, None, 0.5), (64, 32, 0.9), (50, 77.5, 0.01)]
)
def test_a_grid_keeps_the_windows_on_tissue(tmp_path, span, step, least):
    path, disc = blob(tmp_path)
    grid = tissue_grid(path, span, step=step, min_tissue=least)
    everything = tissue_grid(path, span, step=step, min_tissue=0)
    shares = {}
    for place, center in zip(everything.place.tolist(), everything.centers, strict=True):
        left, top = (int(np.floor(c - span / 2 + 0.5)) for c in center)
        assert 0 <= left <= 800 - span and 0 <= top <= 600 - span  # noqa: PT018
        shares[tuple(place)] = disc[top : top + span, left : left + span].mean()
    kept = set(map(tuple, grid.place.tolist()))
    for place, share in shares.items():
        if abs(share - least) > 0.06:
            assert (place in kept) == (share >= least), (place, share)
    assert (grid.tissue >= least).all()


def test_a_slide_without_tissue_has_no_grid(tmp_path):
    rng = np.random.default_rng(0)
    empty = (240 + rng.integers(-5, 6, (400, 400, 3))).astype(np.uint8)
    Image.fromarray(empty).save(tmp_path / "empty.png")
    assert len(tissue_grid(tmp_path / "empty.png", 50).centers) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"span": 0}, "span: expected a positive"),
        ({"span": 601}, "span: expected at most 600"),
        ({"span": 9, "step": -1}, "step: expected a positive"),
        ({"span": 9, "min_tissue": 1.5}, "min_tissue: expected a share"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        tissue_grid(blob(tmp_path)[0], **arguments)


def test_a_thumbnails_edges_are_the_pictures(tmp_path):
    """No fill is blended into the last rows and columns."""
    Image.new("RGB", (1000, 770), (10, 20, 30)).save(tmp_path / "flat.png")
    found, _ = stfast.thumbnail(tmp_path / "flat.png", 100)
    assert (found == (10, 20, 30)).all()
    assert open_image(tmp_path / "flat.png").shape == (770, 1000)
