"""Images whose pixels cannot be had block by block: where decoding can start, and where not.

Also what a file of many pages shows, what its header says of a pixel's size, and how a region
of a level is read.
"""

import itertools

import numpy as np
import pytest
import tifffile
from PIL import Image

import oracles
import stfast
from conftest import all_pixels, alone
from oracles import at_any_workers
from stfast import FormatError, extract_tiles, open_image

SHAPE = (75, 61)
LARGE = (1100, 1003)
"""More than a million pixels: a single block is then looked into."""

# --- where decoding can start ------------------------------------------------------------------


def assert_bands_equal_the_whole(path, access, expected=None):
    """Windows all over a large picture, at 1, 2 and 5 workers, and the whole of it."""
    image = open_image(path)
    expected = oracles.pixels(path) if expected is None else expected
    assert image.levels[0].access[0] == access
    rng = np.random.default_rng(0)
    centers = rng.uniform(0, 1, (40, 2)) * image.shape[::-1]
    for chosen in (centers, centers[:3], centers[centers[:, 1] > image.shape[0] * 0.8]):
        found = at_any_workers(lambda n, c=chosen: extract_tiles(path, c, 96, workers=n))
        for tile, center in zip(found, chosen, strict=True):
            np.testing.assert_array_equal(tile, oracles.tile(expected, center, 96))
    np.testing.assert_array_equal(all_pixels(image, 300), expected)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "grey"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_restart_markers_give_bands_bit_for_bit(tmp_path, subsampling, rows):
    path = tmp_path / "bands.jpg"
    image = Image.fromarray(oracles.picture(*LARGE))
    if subsampling == "grey":
        image.convert("L").save(path, quality=80, restart_marker_rows=rows)
    else:
        image.save(path, quality=80, subsampling=subsampling, restart_marker_rows=rows)
    assert_bands_equal_the_whole(path, "restart markers")


@pytest.mark.parametrize("blocks", [7, 63, 64, 1000])
def test_restart_markers_need_not_end_rows(tmp_path, blocks):
    """Intervals that end rows seldom or never: bands only where both ends meet."""
    path = tmp_path / "bands.jpg"
    options = {"quality": 80, "restart_marker_blocks": blocks}
    Image.fromarray(oracles.picture(*LARGE)).save(path, **options)
    # 1000 and the 63 of a row meet after 1000 rows: one band would be all of the picture.
    assert_bands_equal_the_whole(path, "one pass" if blocks == 1000 else "restart markers")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
def test_a_jpeg_without_restart_markers_is_read_in_one_pass(tmp_path, options):
    path = tmp_path / "pass.jpg"
    Image.fromarray(oracles.picture(*LARGE)).save(path, quality=80, **options)
    assert_bands_equal_the_whole(path, "one pass")


def test_a_restart_marker_may_stand_before_the_end(tmp_path):
    """Hamamatsu's stripes have one after their last interval."""
    stream = oracles.jpeg(oracles.picture(*LARGE), quality=80, restart_marker_rows=1)
    path = tmp_path / "bands.jpg"
    path.write_bytes(stream[:-2] + b"\xff\xd7" + stream[-2:])
    assert_bands_equal_the_whole(path, "restart markers")


def test_a_hamamatsu_stripe_has_one(real):
    path = real("images/ndpi-stripe-restart-markers.jpg")
    assert_bands_equal_the_whole(path, "restart markers")


def test_restart_markers_that_are_missing_are_not_believed(tmp_path):
    stream = oracles.jpeg(oracles.picture(*LARGE), quality=80, restart_marker_rows=1)
    at = stream.index(b"\xff\xd3")
    path = tmp_path / "gap.jpg"
    path.write_bytes(stream[:at] + stream[at + 2 :])
    assert open_image(path).levels[0].access[0] == "one pass"
    with pytest.raises(FormatError, match=r"gap\.jpg"):
        extract_tiles(path, [[500, 1000]], 64)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_large_png_is_read_in_one_pass(tmp_path, mode):
    path = tmp_path / "pass.png"
    image = Image.fromarray(oracles.picture(*LARGE)).convert(mode)
    image.save(path, compress_level=1)
    assert_bands_equal_the_whole(path, "one pass")


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(
    ("codec", "predictor"),
    [(None, False), ("packbits", False), *itertools.product(["deflate", "lzw", "zstd"], [0, 1])],
)
def test_a_single_strip_is_read_in_one_pass(tmp_path, codec, predictor, planar):
    path = tmp_path / "strip.tif"
    options = {"compression": codec, "predictor": bool(predictor) or None, "photometric": "rgb"}
    options |= {"rowsperstrip": LARGE[0], "metadata": None}
    data = oracles.picture(*LARGE)
    if planar:
        data, options = np.moveaxis(data, -1, 0).copy(), options | {"planarconfig": "separate"}
    tifffile.imwrite(path, data, **options)
    access = "blocks" if codec is None else "one pass"
    assert_bands_equal_the_whole(path, access)


def test_a_single_strip_of_16_bits_is_read_in_one_pass(tmp_path):
    path = tmp_path / "strip.tif"
    data = (
        oracles.picture(*LARGE).astype(np.uint16) * 257
        ^ np.arange(LARGE[1], dtype=np.uint16)[:, None]
    )
    options = {"compression": "deflate", "predictor": True, "photometric": "rgb"}
    tifffile.imwrite(path, data, rowsperstrip=LARGE[0], **options)
    assert_bands_equal_the_whole(path, "one pass")


def test_a_single_jpeg_strip_with_tables_apart_gives_bands(tmp_path):
    """Pillow's stream in two: tables where TIFF keeps them, the rest in one strip."""
    stream = oracles.jpeg(oracles.picture(*LARGE), quality=80, restart_marker_rows=1)
    path = tmp_path / "strip.tif"
    tifffile.imwrite(path, iter([stream]), shape=(*LARGE, 3), dtype="u1", photometric="ycbcr",
                     compression="jpeg", rowsperstrip=LARGE[0], subsampling=(2, 2))  # fmt: skip
    assert_bands_equal_the_whole(path, "restart markers")


def test_a_tiled_jpeg_2000_is_decoded_by_its_tiles(tmp_path):
    path = tmp_path / "tiles.jp2"
    data = oracles.picture(*LARGE)
    Image.fromarray(data).save(path, tile_size=(256, 256), irreversible=False)
    image = open_image(path)
    assert image.levels[0].access == ("tiles within", 256, 256)
    assert_bands_equal_the_whole(path, "tiles within", data)


def test_a_pass_stops_after_the_last_row_wanted(tmp_path):
    """Damage below is not reached; damage above is."""
    path = tmp_path / "half.tif"
    options = {"compression": "zstd", "photometric": "rgb", "rowsperstrip": 2000}
    data = oracles.picture(2000, 1003)
    tifffile.imwrite(path, data, **options)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
    at = start + int(length * 0.8)
    content[at : at + 2000] = bytes(2000)
    path.write_bytes(content)
    found = extract_tiles(path, [[500, 200]], 64, workers=2)[0]
    np.testing.assert_array_equal(found, oracles.tile(data, (500, 200), 64))
    with pytest.raises(FormatError, match=r"half\.tif"):
        extract_tiles(path, [[500, 200], [500, 1900]], 64)


def restart_starts(stream):
    """Where each restart interval of a JPEG starts."""
    scan = stream.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(stream[scan + 2 : scan + 4], "big")
    pairs = enumerate(itertools.pairwise(stream[start:]), start)
    return [start, *(i + 2 for i, (a, b) in pairs if a == 0xFF and 0xD0 <= b <= 0xD7)]


@pytest.mark.parametrize("interval", [8, 32, 128])
def test_ndpi_is_read_by_its_restart_intervals(tmp_path, interval):
    """One JPEG, and a tag that says where its intervals start."""
    data = oracles.picture(512, 1024)
    stream = oracles.jpeg(data, quality=90, subsampling="4:4:4", restart_marker_blocks=interval)
    tags = {256: 1024, 257: 512, 258: (8, 8, 8), 259: 7, 262: 6, 277: 3, 278: 512}
    tags |= {65420: 1, 65426: tuple(restart_starts(stream)), 282: (40_000, 1), 296: 3}
    tags |= {271: "Hamamatsu"}  # as text, which tifffile asks for from 2026.7.14 on
    path = tmp_path / "slide.ndpi"
    oracles.tiff(path, stream, tags, ndpi=True)
    image = open_image(path)
    header = image.levels[0].header
    assert (header.codec, header.block_width, header.block_height) == ("jpeg-scan", 8 * interval, 8)
    np.testing.assert_array_equal(all_pixels(image, 256), oracles.stream_pixels(stream))


# --- pages and channels ------------------------------------------------------------------------


@pytest.fixture
def stack(tmp_path):
    """An OME-TIFF of five channels with names, 16 bits, and its samples."""
    path = tmp_path / "stack.ome.tif"
    data = np.random.default_rng(0).integers(0, 2**16, (5, *SHAPE), dtype=np.uint16)
    names = {"Channel": {"Name": ["DAPI", "FITC", "Cy3", "Cy5", "AF"]}}
    tifffile.imwrite(path, data, photometric="minisblack", metadata={"axes": "CYX", **names},
                     compression="deflate", tile=(32, 32))  # fmt: skip
    return path, data


def test_several_pages_are_named_where_channels_are_not(stack):
    path, _ = stack
    with pytest.raises(
        NotImplementedError,
        match=r"stack\.ome\.tif: expected one page a level, got 5 "
        r"\(page 0 DAPI, page 1 FITC, page 2 Cy3, page 3 Cy5, page 4 AF\); give channels=",
    ):
        open_image(path)


@pytest.mark.parametrize("channels", [(2,), (4, 0), (1, 3, 0), (2, 2, 2)])
def test_channels_are_shown_as_grey_or_colours(stack, channels):
    path, data = stack
    image = open_image(path, channels=channels)
    eight = (data >> 8).astype(np.uint8)
    if len(channels) == 1:
        expected = np.repeat(eight[channels[0]][..., None], 3, axis=-1)
    else:
        planes = [eight[channel] for channel in channels] + [np.zeros_like(eight[0])]
        expected = np.stack(planes[:3], axis=-1)
    np.testing.assert_array_equal(all_pixels(image), expected)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_samples_of_one_page_are_channels_too(tmp_path, planar):
    path = tmp_path / "samples.tif"
    data = np.random.default_rng(0).integers(0, 256, (*SHAPE, 5), dtype=np.uint8)
    stored = data if planar == "contig" else np.moveaxis(data, -1, 0).copy()
    options = {"photometric": "minisblack", "planarconfig": planar, "metadata": None}
    tifffile.imwrite(path, stored, extrasamples=["unspecified"] * 4, **options)
    with pytest.raises(NotImplementedError, match=r"samples\.tif.*got 5 samples.*channels="):
        open_image(path)
    found = all_pixels(open_image(path, channels=[4, 1]))
    np.testing.assert_array_equal(found[..., :2], data[..., [4, 1]])
    assert (found[..., 2] == 0).all()


@pytest.mark.parametrize("channels", [(), (5,), (-1,), (0, 1, 2, 3)])
def test_channels_that_are_not_there_are_refused(stack, channels):
    with pytest.raises(ValueError, match="channels: expected one to three of 0 to 4, got"):
        open_image(stack[0], channels=channels)


def test_channels_survive_pickling(stack):
    import pickle

    image = open_image(stack[0], channels=(3,), mpp=0.25)
    again = pickle.loads(pickle.dumps(image))
    assert (again.channels, again.mpp, again.mpp_source) == ((3,), 0.25, "given")
    np.testing.assert_array_equal(all_pixels(again), all_pixels(image))


# --- what the header says ----------------------------------------------------------------------


def test_microns_per_pixel_come_from_ome(tmp_path):
    path = tmp_path / "a.ome.tif"
    sizes = {"PhysicalSizeX": 0.0004, "PhysicalSizeXUnit": "mm"}
    sizes |= {"PhysicalSizeY": 600, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(path, oracles.picture(*SHAPE), photometric="rgb", metadata=sizes)
    image = open_image(path)
    assert image.mpp == pytest.approx(0.5)
    assert image.mpp_source == "ome"


PHILIPS = """<DataObject ObjectType="DPUfsImport"><Attribute Name="DICOM_PIXEL_SPACING"
Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">&quot;0.00025&quot; &quot;0.00025&quot;
</Attribute></DataObject>"""


def test_microns_per_pixel_come_from_philips(tmp_path):
    path = tmp_path / "philips.tiff"
    options = {"software": "Philips DP v1.0", "description": PHILIPS, "metadata": None}
    tifffile.imwrite(path, oracles.picture(64, 64), photometric="rgb", tile=(32, 32), **options)
    image = open_image(path)
    assert (image.mpp, image.mpp_source) == (pytest.approx(0.25), "philips")


def test_a_pyramid_of_pages_has_levels(tmp_path):
    """As COG and libtiff have them: reduced pages beside the full one."""
    path = tmp_path / "cog.tif"
    data = oracles.picture(256, 192)
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 2, 4):
            kind = {"subfiletype": int(step > 1), "tile": (64, 64), "photometric": "rgb"}
            tiff.write(data[::step, ::step], compression="deflate", metadata=None, **kind)
    image = open_image(path)
    assert [level.downsample for level in image.levels] == [(1, 1), (2, 2), (4, 4)]
    for level, step in zip(image.levels, (1, 2, 4), strict=True):
        np.testing.assert_array_equal(all_pixels(alone(image, level)), data[::step, ::step])


def test_microns_per_pixel_come_from_a_plain_pictures_resolution(tmp_path):
    for suffix, dpi, mpp in ((".jpg", 50_800, 0.5), (".png", 25_400, 1.0), (".jpg", 72, None)):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(oracles.picture(*SHAPE)).save(path, dpi=(dpi, dpi))
        assert open_image(path).mpp == (mpp and pytest.approx(mpp, rel=1e-3))


def test_given_microns_per_pixel_win(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, oracles.picture(*SHAPE), photometric="rgb", resolution=(1e4, 1e4),
                     resolutionunit="CENTIMETER")  # fmt: skip
    assert open_image(path).mpp_source == "resolution"
    image = open_image(path, mpp=0.3)
    assert (image.mpp, image.mpp_source) == (0.3, "given")
    with pytest.raises(ValueError, match="mpp: expected a positive number of µm, got 0"):
        open_image(path, mpp=0)


# --- regions -----------------------------------------------------------------------------------


def test_a_region_of_a_level_is_read_as_openslide_reads_it(tmp_path):
    path = tmp_path / "pyramid.tif"
    levels = [oracles.picture(400 // k, 320 // k, seed=k) for k in (1, 2)]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(levels[0], tile=(64, 64), photometric="rgb", subifds=1)
        tiff.write(levels[1], tile=(64, 64), photometric="rgb", subfiletype=1)
    image = stfast.open_image(path)
    for number, (x, y), size in (
        (0, (10, 20), (30, 7)),
        (1, (10, 20), (5, 90)),
        (-1, (0, 0), (160, 200)),
    ):
        found = image.read_region((x, y), number, size)
        step = 1 if number == 0 else 2
        expected = oracles.window(levels[number], x // step, y // step, *size)
        np.testing.assert_array_equal(found, expected)
    outside = image.read_region((-5, 395), 0, (20, 20), fill=7)
    np.testing.assert_array_equal(outside, oracles.window(levels[0], -5, 395, 20, 20, fill=7))
    with pytest.raises(IndexError):
        image.read_region((0, 0), 2, (5, 5))
    for bad in ((0, 5), (5, -1), (5, 10**6)):
        with pytest.raises(ValueError, match="size"):
            image.read_region((0, 0), 0, bad)
