"""Images: every pixel against tifffile and Pillow, in every form that a slide's file takes.

The files are written here, by tifffile (through imagecodecs) and by Pillow (through
libtiff), in all combinations of codec, grid, colour and byte order; real ones are added
where they are at hand. Then the same files are broken: cut, bent, and made to lie.
"""

import itertools
import pickle
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image

import oracles
import stfast
from conftest import all_pixels, alone
from oracles import tree
from stfast import FormatError, extract_tiles, open_image

SHAPE = (75, 61)
CODECS = [
    (None, False),
    *itertools.product(["deflate", "lzw", "zstd"], [False, True]),
    ("jpeg", False),
]
GRIDS = {
    "tiles": {"tile": (32, 16)},
    "strips": {"rowsperstrip": 9},
    "one strip": {"rowsperstrip": 75},
}
COLOURS: dict[str, dict] = {
    "grey": {"photometric": "minisblack"},
    "inverted": {"photometric": "miniswhite"},
    "grey and alpha": {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
    "rgb": {"photometric": "rgb"},
    "rgba": {"photometric": "rgb", "extrasamples": ["unassalpha"]},
    "rgb in planes": {"photometric": "rgb", "planarconfig": "separate"},
}


def samples(colour):
    """A picture in the number of samples, and in the order, that a colour has."""
    rgb = oracles.picture(*SHAPE, seed=4)
    if colour in ("grey", "inverted"):
        return rgb[..., 0]
    if colour == "grey and alpha":
        return np.ascontiguousarray(rgb[..., :2])
    if colour == "rgba":
        return np.concatenate([rgb, rgb[::-1, :, :1]], axis=-1)
    return np.moveaxis(rgb, -1, 0).copy() if "planes" in colour else rgb


# --- what is read ------------------------------------------------------------------------------


# JPEG has no alpha.
KINDS = [
    (*codec, colour)
    for codec, colour in itertools.product(CODECS, COLOURS)
    if codec[0] != "jpeg" or "extrasamples" not in COLOURS[colour]
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("codec", "predictor", "colour"), KINDS)
def test_a_tiff_of_any_kind_equals_tifffile(tmp_path, codec, predictor, colour, grid):
    for byteorder, big in (("<", False), (">", False), ("<", True), (">", True)):
        path = tmp_path / f"{byteorder == '<'}{big}.tif"
        options = {"compression": codec, "predictor": predictor or None}
        options |= {"byteorder": byteorder, "bigtiff": big, "metadata": None}
        tifffile.imwrite(path, samples(colour), **options, **GRIDS[grid], **COLOURS[colour])
        np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


@pytest.mark.parametrize("codec", ["raw", "tiff_lzw", "tiff_adobe_deflate", "zstd", "jpeg"])
def test_a_tiff_that_libtiff_wrote_equals_pillow(tmp_path, codec):
    for mode in ("L", "RGB") if codec == "jpeg" else ("L", "RGB", "RGBA"):
        path = tmp_path / f"{mode}.tif"
        Image.fromarray(oracles.picture(*SHAPE)).convert(mode).save(path, compression=codec)
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(all_pixels(path), expected)


@pytest.mark.parametrize("subsampling", [None, "444", "422", "420", "440"])
def test_jpeg_blocks_of_any_subsampling_equal_tifffile(tmp_path, subsampling):
    """None: RGB, which is not subsampled, without a word on it in the stream."""
    path = tmp_path / "jpeg.tif"
    arguments = {"level": 90, "outcolorspace": "ycbcr" if subsampling else "rgb"}
    if subsampling:
        arguments["subsampling"] = subsampling
    tifffile.imwrite(
        path,
        oracles.picture(64, 96),
        photometric="rgb",
        compression="jpeg",
        compressionargs=arguments,
        tile=(32, 48),
    )
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"quality": 10},
        {"keep_rgb": True},
        {"comment": b"a word", "icc_profile": bytes(70_000)},
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_plain_jpeg_equals_pillow(tmp_path, mode, options):
    path = tmp_path / "plain.jpg"
    Image.fromarray(oracles.picture(*SHAPE)).convert(mode).save(path, **options)
    assert open_image(path).kind == "jpeg"
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


TRANSPARENT = {"L": 9, "P": 3, "RGB": (1, 2, 3)}


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_plain_png_equals_pillow(tmp_path, mode, transparent):
    path = tmp_path / "plain.png"
    image = Image.fromarray(oracles.picture(*SHAPE)).convert(mode)
    known = transparent and mode in TRANSPARENT
    image.save(path, **({"transparency": TRANSPARENT[mode]} if known else {}))
    assert open_image(path).kind == "png"
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_png_of_few_colours_equals_pillow(tmp_path, bits):
    path = tmp_path / "few.png"
    image = Image.fromarray(oracles.picture(*SHAPE)).quantize(2**bits)
    image.save(path, bits=bits)
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


def test_a_png_of_16_bits_equals_pillow(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    path = tmp_path / "deep.png"
    deep = np.random.default_rng(0).integers(0, 2**16, (*SHAPE, 3), dtype=np.uint16)
    path.write_bytes(imagecodecs.png_encode(deep))
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


def test_an_interlaced_png_equals_pillow(tmp_path):
    path = tmp_path / "adam7.png"
    path.write_bytes(oracles.interlaced_png(oracles.picture(*SHAPE)))
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))
    np.testing.assert_array_equal(all_pixels(path), oracles.picture(*SHAPE))


@pytest.mark.parametrize("content", ["JPEG", "PNG", "TIFF"])
def test_a_name_that_lies_changes_nothing(tmp_path, content):
    image = Image.fromarray(oracles.picture(*SHAPE))
    for suffix in (".png", ".jpg", ".tif", ".svs", ".txt", ""):
        path = tmp_path / f"picture{suffix}"
        image.save(path, content)
        assert open_image(path).kind == content.lower()
        np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


def test_paths_may_be_strings_and_hold_any_letter(tmp_path):
    path = tmp_path / "Schnitt µ 1 (ä).tif"
    tifffile.imwrite(path, oracles.picture(*SHAPE), photometric="rgb")
    np.testing.assert_array_equal(all_pixels(str(path)), oracles.pixels(path))


@pytest.mark.parametrize("predictor", [1, 2])
def test_blocks_that_a_file_leaves_out_are_black(tmp_path, predictor):
    path = tmp_path / "sparse.tif"
    data = np.zeros((64, 64, 3), np.uint8)
    data[32:, 32:] = oracles.picture(32, 32)
    options = {"tile": (32, 32), "photometric": "rgb", "compression": "deflate"}
    tifffile.imwrite(path, data, predictor=predictor == 2, **options)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        lengths = list(tiff.pages.first.databytecounts)
        tiff.pages.first.tags["TileByteCounts"].overwrite([0, *lengths[1:]])
    np.testing.assert_array_equal(all_pixels(path), data)


@pytest.mark.parametrize("codec", [None, "zstd", "jpeg"])
def test_every_level_of_a_pyramid_equals_tifffile(tmp_path, codec):
    path = tmp_path / "pyramid.btf"
    big = oracles.picture(320, 256)
    options = {"tile": (64, 64), "photometric": "rgb", "compression": codec}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(big, subifds=2, **options)
        tiff.write(big[::2, ::2], subfiletype=1, **options)
        tiff.write(big[::4, ::4], subfiletype=1, **options)
    image = open_image(path)
    assert [level.shape for level in image.levels] == [(320, 256), (160, 128), (80, 64)]
    assert [level.downsample for level in image.levels] == [(1, 1), (2, 2), (4, 4)]
    with tifffile.TiffFile(path) as tiff:
        for level, series in zip(image.levels, tiff.series[0].levels, strict=True):
            expected = oracles.tiff_pixels(series.pages[0])
            np.testing.assert_array_equal(all_pixels(alone(image, level)), expected)


@pytest.mark.parametrize(
    ("reduction", "downsample"), [(0.1, 1), (1, 1), (1.99, 1), (2, 2), (3, 2), (4, 4), (99, 4)]
)
def test_the_best_level_is_the_most_reduced_that_is_fine_enough(tmp_path, reduction, downsample):
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(oracles.picture(64, 64), subifds=2, photometric="rgb")
        for step in (2, 4):
            tiff.write(oracles.picture(64 // step, 64 // step), subfiletype=1, photometric="rgb")
    assert open_image(path).best_level(reduction).downsample == (downsample, downsample)


# --- what the header says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20_000, 20_000), "CENTIMETER", 0.5),
        ((50_800, 50_800), "INCH", 0.5),
        ((20_000, 10_000), "CENTIMETER", 0.75),
        ((72, 72), "INCH", None),
        ((1, 1), "NONE", None),
        ((0, 0), "CENTIMETER", None),
    ],
)
def test_microns_per_pixel_come_from_the_resolution(tmp_path, resolution, unit, mpp):
    path = tmp_path / "mpp.tif"
    data = oracles.picture(16, 16)
    tifffile.imwrite(path, data, photometric="rgb", resolution=resolution, resolutionunit=unit)
    image = open_image(path)
    assert image.mpp == (None if mpp is None else pytest.approx(mpp))
    assert image.mpp_source == (None if mpp is None else "resolution")


def test_microns_per_pixel_come_from_aperio(tmp_path):
    path = tmp_path / "slide.svs"
    description = "Aperio Image Library v1\n16x16 |AppMag = 20|MPP = 0.4990|Left = 1"
    options = {"photometric": "rgb", "tile": (16, 16), "metadata": None}
    tifffile.imwrite(path, oracles.picture(16, 16), description=description, **options)
    image = open_image(path)
    assert (image.mpp, image.mpp_source) == (0.499, "aperio")


def test_an_open_image_can_be_pickled(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, oracles.picture(*SHAPE), photometric="rgb", compression="lzw")
    image = open_image(path)
    expected = all_pixels(image)
    for thing in (pickle.dumps(image), pickle.dumps(image.levels[0])):
        again = pickle.loads(thing)
        again = again if isinstance(again, stfast.SlideImage) else alone(image, again)
        np.testing.assert_array_equal(all_pixels(again), expected)


def test_an_open_image_serves_many_python_threads(tmp_path):
    path = tmp_path / "a.tif"
    data = oracles.picture(256, 256)
    tifffile.imwrite(path, data, photometric="rgb", compression="jpeg", tile=(64, 64))
    image, expected, found = open_image(path), oracles.pixels(path), {}

    def cut(number):
        found[number] = extract_tiles(image, [[128, 128]] * 20, 256, workers=1 + number % 3)

    threads = [threading.Thread(target=cut, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all((tiles == expected).all() for tiles in found.values())


# --- real files --------------------------------------------------------------------------------


def names_of(suffixes):
    """Names of the real pictures, so that each is a test of its own."""
    from conftest import DATA

    return sorted(p.name for p in DATA.glob("images/*") if p.suffix in suffixes) or ["any.tif"]


@pytest.mark.parametrize("name", names_of({".tif", ".svs", ".jpg"}))
def test_a_real_image_equals_tifffile_and_pillow(real, name):
    path = real(f"images/{name}")
    image = open_image(path)
    if image.kind != "tiff":
        np.testing.assert_array_equal(all_pixels(image, 512), oracles.pixels(path))
        return
    with tifffile.TiffFile(path) as tiff:
        for level, series in zip(image.levels, tiff.series[0].levels, strict=True):
            expected = oracles.tiff_pixels(series.pages[0]).astype(int)
            # Lossy JPEG 2000 is in floating point: builds of OpenJPEG differ by 1.
            tolerance = int(level.header.codec == "jpeg2000")
            found = all_pixels(alone(image, level), 512)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_an_aperio_slide_says_its_microns_per_pixel(real):
    image = open_image(real("images/CMU-1-Small-Region.svs"))
    assert (image.mpp, image.mpp_source) == (0.499, "aperio")


# --- what is refused ---------------------------------------------------------------------------


def test_what_is_no_image_is_refused(tmp_path):
    for name, content in {
        "empty": b"",
        "text": b"hello, world",
        "gif": b"GIF89a" + bytes(20),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(FormatError, match=f"{name}: expected a TIFF, JPEG, PNG"):
            open_image(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        open_image(tmp_path / "gone.tif")
    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        extract_tiles(tmp_path / "gone.tif", [[1, 1]])
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        open_image(tmp_path)


def test_a_file_that_goes_after_opening_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, oracles.picture(16, 16), photometric="rgb")
    image = open_image(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.tif"):
        extract_tiles(image, [[8, 8]], 8)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("found", "options"),
    [
        ("samples of format.*IEEEFP", {"dtype": np.float32}),
        ("samples of format.*INT", {"dtype": np.int16}),
        ("32 bits a sample", {"dtype": np.uint32}),
        ("photometric.*CIELAB", {"photometric": "cielab"}),
    ],
)
def test_what_is_not_decoded_yet_is_said(tmp_path, found, options):
    options, data = dict(options), oracles.picture(32, 32)
    path = tmp_path / "odd.tif"
    data = data.astype(options.pop("dtype", np.uint8))
    tifffile.imwrite(path, data, **{"photometric": "rgb"} | options)
    with pytest.raises(NotImplementedError, match=rf"odd\.tif: expected grey.*got {found}"):
        open_image(path)


def test_a_stack_of_pages_is_refused(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.zeros((5, 32, 32), np.uint8), photometric="minisblack")
    with pytest.raises(NotImplementedError, match=r"stack\.tif: expected one page a level, got 5"):
        open_image(path)
