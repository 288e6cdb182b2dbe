"""Images in every layout and codec, and where each lets decoding start.

Files are written at test time by tifffile, imagecodecs and Pillow, and the same packages say
what is in them: bit for bit where the codec is exact or its decoder is the same library.
"""

import io
import itertools
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

import oracles
from conftest import all_pixels
from stfast import extract_tiles, open_image
from stfast._warn import kept

imagecodecs = pytest.importorskip("imagecodecs")

SHAPE = (75, 61)
GRIDS = {
    "tiles": {"tile": (32, 16)},
    "strips": {"rowsperstrip": 9},
    "one strip": {"rowsperstrip": 75},
}
DEEP = {
    "grey": {"photometric": "minisblack"},
    "inverted": {"photometric": "miniswhite"},
    "rgb": {"photometric": "rgb"},
    "rgba": {"photometric": "rgb", "extrasamples": ["unassalpha"]},
    "rgb in planes": {"photometric": "rgb", "planarconfig": "separate"},
}


def samples(colour, dtype=np.uint8):
    """A picture in the number of samples, and in the order, that a colour has."""
    rgb = oracles.picture(*SHAPE, seed=4).astype(dtype)
    if dtype == np.uint16:
        rgb = rgb * 257 ^ np.arange(SHAPE[1], dtype=np.uint16)[None, :, None]
    if colour in ("grey", "inverted"):
        return rgb[..., 0].copy()
    if colour in ("rgba", "cmyk"):
        return np.concatenate([rgb, rgb[::-1, :, :1]], axis=-1)
    return np.moveaxis(rgb, -1, 0).copy() if "planes" in colour else rgb


# --- codecs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("codec", ["packbits", "jpeg2000", "webp"])
def test_more_codecs_equal_tifffile(tmp_path, codec, grid):
    """JPEG 2000 and WebP without loss; the decoders are those of imagecodecs."""
    for colour in ("rgb",) if codec == "webp" else ("grey", "rgb"):
        path = tmp_path / f"{colour}.tif"
        lossless = {"compressionargs": {"lossless": True}} if codec == "webp" else {}
        options = {"compression": codec, "metadata": None, **lossless}
        tifffile.imwrite(path, samples(colour), **options, **GRIDS[grid], **DEEP[colour])
        np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("colour", DEEP)
@pytest.mark.parametrize(
    ("codec", "predictor"),
    [(None, False), *itertools.product(["deflate", "lzw", "zstd"], [False, True])],
)
def test_16_bits_become_their_upper_8(tmp_path, codec, predictor, colour, grid):
    for byteorder in "<>":
        path = tmp_path / f"{byteorder == '<'}.tif"
        options = {"compression": codec, "predictor": predictor or None, "metadata": None}
        data = samples(colour, np.uint16)
        tifffile.imwrite(path, data, byteorder=byteorder, **options, **GRIDS[grid], **DEEP[colour])
        np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_deep_jpeg_2000_is_cut_to_8_bits(tmp_path, bits):
    path = tmp_path / "deep.jp2"
    data = (samples("rgb", np.uint16) >> (16 - bits)).astype(np.uint16)
    path.write_bytes(imagecodecs.jpeg2k_encode(data, bitspersample=bits, level=0))
    np.testing.assert_array_equal(all_pixels(path), (data >> (bits - 8)).astype(np.uint8))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("level", [50, 90])
def test_webp_equals_libwebps(tmp_path, level, lossless):
    path = tmp_path / "p.tif"
    arguments = {"level": level, "lossless": lossless}
    options = {"compression": "webp", "compressionargs": arguments, "tile": (32, 32)}
    tifffile.imwrite(path, samples("rgb"), photometric="rgb", **options)
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


def test_lossy_jpeg_2000_equals_openjpegs(tmp_path):
    """Within 1: the wavelet is in floating point, and builds of OpenJPEG add in other orders."""
    path = tmp_path / "p.tif"
    options = {"compression": "jpeg2000", "compressionargs": {"level": 30}, "tile": (64, 64)}
    tifffile.imwrite(path, oracles.picture(130, 140), photometric="rgb", **options)
    np.testing.assert_allclose(all_pixels(path).astype(int), oracles.pixels(path), atol=1)


def test_aperios_ycbcr_jpeg_2000_becomes_rgb(tmp_path):
    """33003: luma and chroma that the codestream says nothing of; Pillow converts as JFIF says."""
    data = oracles.picture(64, 48)
    ycbcr = np.asarray(Image.fromarray(data).convert("YCbCr"))
    stream = imagecodecs.jpeg2k_encode(ycbcr, level=0, mct=False, codecformat="j2k")
    path = tmp_path / "aperio.tif"
    tifffile.imwrite(path, iter([stream]), shape=data.shape, dtype="u1", tile=(64, 48),
                     compression=33003, photometric="rgb", metadata=None)  # fmt: skip
    expected = np.asarray(Image.fromarray(ycbcr, "YCbCr").convert("RGB")).astype(int)
    np.testing.assert_allclose(all_pixels(path), expected, atol=1)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("codec", ["lzma", "lerc", "jpegxl", "png"])
def test_other_codecs_go_through_imagecodecs_and_say_so_once(tmp_path, codec, bits):
    path = tmp_path / "other.tif"
    dtype = np.uint8 if bits == 8 else np.uint16
    lossless = {"compressionargs": {"lossless": True}} if codec == "jpegxl" else {}
    options = {"compression": codec, "tile": (32, 16), "photometric": "rgb", **lossless}
    tifffile.imwrite(path, samples("rgb", dtype), **options)
    image = open_image(path)
    with pytest.warns(UserWarning, match=r"other\.tif: .* decoded by imagecodecs, slower"):
        found = all_pixels(image)
    np.testing.assert_array_equal(found, oracles.pixels(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(all_pixels(image), found)
    assert image.levels[0].access[0] == "imagecodecs"


def test_a_build_keeps_what_is_said_of_a_picture(tmp_path):
    path = tmp_path / "other.tif"
    data = samples("rgb", np.uint8)
    tifffile.imwrite(path, data, compression="lzma", tile=(32, 16), photometric="rgb")
    with warnings.catch_warnings(), kept() as found:
        warnings.simplefilter("error")
        extract_tiles(path, [(8.0, 8.0), (-900.0, -900.0)], 8)
    codec, outside = found
    assert "decoded by imagecodecs" in codec
    assert "1 of 2 windows lie wholly outside" in outside


def test_planes_in_another_codec_go_through_imagecodecs(tmp_path):
    path = tmp_path / "planes.tif"
    options = {"compression": "lzma", "tile": (32, 16), **DEEP["rgb in planes"]}
    tifffile.imwrite(path, samples("rgb in planes"), **options)
    with pytest.warns(UserWarning, match="slower"):
        np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_few_bits_are_spread_over_8(tmp_path, bits, photometric):
    path = tmp_path / "few.tif"
    data = np.random.default_rng(0).integers(0, 2**bits, SHAPE, dtype=np.uint8)
    each = np.unpackbits(data[..., None], axis=-1)[..., 8 - bits :]
    strip = np.packbits(each.reshape(SHAPE[0], -1), axis=-1).tobytes()
    tags = {256: SHAPE[1], 257: SHAPE[0], 258: bits, 259: 1, 277: 1, 278: SHAPE[0]}
    oracles.tiff(path, strip, tags | {262: int(photometric == "minisblack")})
    expected = data.astype(int) * 255 // (2**bits - 1)
    expected = expected if photometric == "minisblack" else 255 - expected
    with pytest.warns(UserWarning, match="slower"):
        found = all_pixels(path)
    np.testing.assert_array_equal(found[..., 1], expected)


# --- colours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "lzw", "deflate"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_palette_is_looked_up(tmp_path, codec, grid):
    path = tmp_path / "palette.tif"
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    index = samples("grey")
    options = {"photometric": "palette", "colormap": colours, "compression": codec}
    tifffile.imwrite(path, index, **options, **GRIDS[grid])
    np.testing.assert_array_equal(all_pixels(path), (colours >> 8).T.astype(np.uint8)[index])


@pytest.mark.parametrize("codec", ["raw", "tiff_lzw", "jpeg"])
def test_cmyk_becomes_rgb_as_pillow_does_it(tmp_path, codec):
    path = tmp_path / "cmyk.tif"
    image = Image.fromarray(samples("cmyk"), "CMYK")
    image.save(path, compression=codec)
    with Image.open(path) as read:
        expected = np.asarray(read.convert("RGB"))
    np.testing.assert_array_equal(all_pixels(path), expected)


def test_a_cmyk_jpeg_becomes_rgb_as_pillow_does_it(tmp_path):
    path = tmp_path / "cmyk.jpg"
    Image.fromarray(samples("cmyk"), "CMYK").save(path, quality=90)
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


def ycbcr_units(ycbcr, across, down):
    """Data units of TIFF 6.0, section 21: luma of a few pixels, then a pair of chroma."""
    height, width = ycbcr.shape[:2]
    rows, cols = -(-height // down) * down, -(-width // across) * across
    padded = np.pad(ycbcr, ((0, rows - height), (0, cols - width), (0, 0)), mode="edge")
    units = padded.reshape(rows // down, down, cols // across, across, 3).swapaxes(1, 2)
    luma = units[..., 0].reshape(*units.shape[:2], -1)
    chroma = units[:, :, 0, 0, 1:]
    shared = np.repeat(np.repeat(chroma, across, axis=1), down, axis=0)[:height, :width]
    return np.concatenate([luma, chroma], axis=-1), shared


@pytest.mark.parametrize("codec", ["none", "lzw", "deflate"])
@pytest.mark.parametrize("chroma", [(1, 1), (2, 1), (2, 2), (4, 2), (1, 2)])
def test_uncompressed_ycbcr_of_any_subsampling_becomes_rgb(tmp_path, chroma, codec):
    """Within 1: the conversion's rounding is nowhere laid down."""
    path = tmp_path / "ycbcr.tif"
    ycbcr = np.asarray(Image.fromarray(oracles.picture(*SHAPE)).convert("YCbCr"))
    units, shared = ycbcr_units(ycbcr, *chroma)
    coders = {"none": bytes, "lzw": imagecodecs.lzw_encode, "deflate": imagecodecs.zlib_encode}
    coded = coders[codec](units.astype(np.uint8).tobytes())
    tags = {256: SHAPE[1], 257: SHAPE[0], 258: (8, 8, 8), 262: 6, 277: 3, 278: SHAPE[0]}
    oracles.tiff(path, coded, tags | {259: {"none": 1, "lzw": 5, "deflate": 8}[codec], 530: chroma})
    full = np.concatenate([ycbcr[..., :1], shared], axis=-1)
    expected = np.asarray(Image.fromarray(full, "YCbCr").convert("RGB")).astype(int)
    np.testing.assert_allclose(all_pixels(path).astype(int), expected, atol=1)


def test_a_photometric_that_lies_about_the_jpeg_loses_to_the_stream(tmp_path):
    path = tmp_path / "lies.tif"
    options = {"compression": "jpeg", "photometric": "rgb", "tile": (32, 32)}
    arguments = {"outcolorspace": "ycbcr"}
    tifffile.imwrite(path, oracles.picture(64, 64), compressionargs=arguments, **options)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages.first.tags["PhotometricInterpretation"].overwrite(2)
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


# --- plain pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jp2", ".j2k", ".png"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_plain_jpeg_2000_equals_pillow(tmp_path, mode, suffix):
    image = Image.fromarray(samples("rgba"), "RGBA").convert(mode)
    path = tmp_path / f"plain{suffix}"
    stream = io.BytesIO()
    image.save(stream, "JPEG2000", no_jp2=suffix == ".j2k")
    path.write_bytes(stream.getvalue())
    assert open_image(path).kind == "jpeg2000"
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_plain_webp_equals_pillow(tmp_path, mode, lossless):
    path = tmp_path / "plain.png"
    Image.fromarray(samples("rgba"), "RGBA").convert(mode).save(
        path, "WEBP", lossless=lossless, exact=True
    )
    assert open_image(path).kind == "webp"
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


def test_an_animation_is_refused(tmp_path):
    path = tmp_path / "moves.webp"
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(NotImplementedError, match=r"moves\.webp: expected one picture"):
        open_image(path)
