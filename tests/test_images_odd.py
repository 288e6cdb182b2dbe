"""Images that are odd but good, and odd and bad: each was once read wrong, or not at all."""

import io
import json
import pickle
import struct
import uuid

import numpy as np
import pytest
import tifffile
from PIL import Image

import oracles
from conftest import all_pixels
from oracles import WORKERS, run_python
from stfast import FormatError, extract_tiles, open_image, thumbnail, write_tiles

imagecodecs = pytest.importorskip("imagecodecs")

LARGE = (1100, 1003)


# --- good ---------------------------------------------------------------------------------------


def jpeg_tiff(path, streams, shape, **options):
    """A TIFF of JPEG streams as they are."""
    options = {"photometric": "ycbcr", "metadata": None} | options
    tifffile.imwrite(path, iter(streams), shape=shape, dtype="u1", compression="jpeg", **options)


def test_channels_of_rgb_without_a_word_on_it_are_rgb(real):
    path = real("images/CMU-1-Small-Region.svs")
    centers = [[1000, 1000], [300, 2500]]
    found = extract_tiles(open_image(path, channels=(2, 0)), centers, 100)
    expected = extract_tiles(path, centers, 100)
    np.testing.assert_array_equal(found[..., :2], expected[..., [2, 0]])


@pytest.mark.parametrize("kind", ["markers", "pass", "jpeg2000"])
def test_planes_of_one_block_are_each_decoded(tmp_path, kind):
    path = tmp_path / "planes.tif"
    data, streams = oracles.picture(*LARGE), []
    for plane in np.moveaxis(data, -1, 0):
        stream, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(plane))
        if kind == "jpeg2000":
            image.save(stream, "JPEG2000", no_jp2=True, tile_size=(256, 256))
        else:
            image.save(stream, "JPEG", restart_marker_rows=int(kind == "markers"))
        streams.append(stream.getvalue())
    options = {"planarconfig": "separate", "photometric": "rgb", "rowsperstrip": LARGE[0]}
    codec = 34712 if kind == "jpeg2000" else "jpeg"
    shape = (3, *LARGE)
    tifffile.imwrite(
        path, iter(streams), shape=shape, dtype="u1", compression=codec, metadata=None, **options
    )
    expected = np.stack([oracles.stream_pixels(stream)[..., 0] for stream in streams], axis=-1)
    np.testing.assert_array_equal(all_pixels(path, 300), expected)


@pytest.mark.parametrize("codec", ["jpeg", "deflate", "zstd", "lzw"])
@pytest.mark.parametrize("shape", [(200, 160), (1100, 1003)])
def test_a_strip_may_be_taller_than_the_image(tmp_path, codec, shape):
    path = tmp_path / "tall.tif"
    data = oracles.picture(*shape)
    tall = np.concatenate([data, data[:56]])
    coders = {"deflate": imagecodecs.zlib_encode, "zstd": imagecodecs.zstd_encode}
    coders |= {"lzw": imagecodecs.lzw_encode, "jpeg": imagecodecs.jpeg8_encode}
    coded = coders[codec](tall if codec == "jpeg" else tall.tobytes())
    tags = {256: shape[1], 257: shape[0], 258: (8, 8, 8), 277: 3, 278: shape[0] + 56}
    kinds = {"jpeg": (7, 6), "deflate": (8, 2), "zstd": (50000, 2), "lzw": (5, 2)}
    oracles.tiff(path, coded, tags | dict(zip((259, 262), kinds[codec], strict=True)))
    expected = oracles.stream_pixels(coded)[: shape[0]] if codec == "jpeg" else data
    np.testing.assert_array_equal(all_pixels(path, 300), expected)


@pytest.mark.parametrize("codec", ["jpeg", "webp", "jpeg2000"])
def test_tiles_at_the_edge_may_be_stored_cropped(tmp_path, codec):
    path = tmp_path / "cropped.tif"
    data = oracles.picture(300, 400)
    places = [(y, x) for y in range(0, 300, 128) for x in range(0, 400, 128)]
    tiles = [np.ascontiguousarray(data[y : y + 128, x : x + 128]) for y, x in places]
    coders = {"jpeg": imagecodecs.jpeg8_encode, "jpeg2000": imagecodecs.jpeg2k_encode}
    coders["webp"] = imagecodecs.webp_encode
    options = {"webp": {"lossless": True}, "jpeg2000": {"level": 0}}.get(codec, {})
    coded = [coders[codec](tile, **options) for tile in tiles]
    photometric = "ycbcr" if codec == "jpeg" else "rgb"
    tifffile.imwrite(
        path, iter(coded), shape=data.shape, dtype="u1", tile=(128, 128),
        compression=codec, photometric=photometric, metadata=None,
    )  # fmt: skip
    np.testing.assert_array_equal(all_pixels(path, 100), oracles.pixels(path))


def test_blocks_left_out_show_what_samples_of_zero_mean(tmp_path):
    colours = np.full((3, 256), 40_000, np.uint16)
    kinds = {"miniswhite": 255, "minisblack": 0, "palette": 156}
    for photometric, expected in kinds.items():
        path = tmp_path / f"{photometric}.tif"
        options = {"colormap": colours} if photometric == "palette" else {}
        blank = np.zeros((128, 128), np.uint8)
        tifffile.imwrite(path, blank, photometric=photometric, tile=(64, 64), **options)
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages.first.tags["TileByteCounts"].overwrite([4096, 0, 0, 0])
        assert (all_pixels(path) == expected).all()


def bent_header(kind):
    """A good JPEG whose header says something odd that concerns no pixel."""
    stream = bytearray(oracles.jpeg(oracles.picture(64, 64)))
    scan = stream.index(b"\xff\xda")
    if kind == "sos":
        end = scan + 2 + int.from_bytes(stream[scan + 2 : scan + 4], "big")
        stream[end - 3 : end] = b"\0\0\0"
    elif kind == "jfif":
        stream[stream.index(b"JFIF") + 5] = 2
    else:
        stream[scan:scan] = b"\0\1\2\3\4"
    return bytes(stream)


@pytest.mark.parametrize("kind", ["sos", "jfif", "stray"])
def test_a_header_may_say_odd_things_that_concern_no_pixel(tmp_path, kind):
    path = tmp_path / "odd.jpg"
    path.write_bytes(bent_header(kind))
    np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


def test_a_thumbnail_of_a_very_large_picture_is_small(tmp_path):
    path = tmp_path / "long.tif"
    data = np.zeros((40_960, 256, 3), np.uint8)
    tifffile.imwrite(path, data, photometric="rgb", compression="deflate", tile=(256, 256))
    assert max(thumbnail(path, 100)[0].shape) <= 100


def test_an_image_opened_by_a_relative_path_stays_open(tmp_path, monkeypatch):
    Image.fromarray(oracles.picture(50, 60)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    image = open_image("a.png")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(all_pixels(image), oracles.picture(50, 60))


def test_what_is_known_of_a_pixel_survives_pickling(tmp_path):
    import dataclasses

    Image.fromarray(oracles.picture(50, 60)).save(tmp_path / "a.png")
    image = dataclasses.replace(open_image(tmp_path / "a.png"), mpp=0.3, mpp_source="scalefactors")
    again = pickle.loads(pickle.dumps(image))
    assert (again.mpp, again.mpp_source) == (0.3, "scalefactors")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_files_and_faults_of_bands_do_not_depend_on_workers(tmp_path, suffix):
    """The bands of a picture are its own; those who decode them have no say."""
    path = tmp_path / f"bands{suffix}"
    options = {"quality": 80, "restart_marker_rows": 1} if suffix == ".jpg" else {}
    Image.fromarray(oracles.picture(3000, 700)).save(path, **options)
    centers = np.random.default_rng(0).uniform(0, 1, (200, 2)) * (700, 3000)
    content, orders, faults = path.read_bytes(), set(), set()
    for workers in WORKERS:
        path.write_bytes(content)
        call = {"container": "wds", "size": 32, "shard_size": 20, "workers": workers}
        output = write_tiles(path, centers, tmp_path / str(workers), **call).output
        orders.add(b"".join(p.read_bytes() for p in sorted(output.glob("*.tar"))))
        path.write_bytes(content[: len(content) // 2])
        valid = np.empty(200, np.float32)
        options = {"on_error": "fill", "valid": valid, "workers": workers}
        with pytest.warns(UserWarning, match="damaged"):
            extract_tiles(path, centers, 32, **options)
        faults.add(valid.tobytes())
    assert len(orders) == 1
    assert len(faults) == 1


def test_old_style_jpeg_is_what_libtiff_makes_of_it(tmp_path):
    """TIFF 6.0, section 22: the stream lies where tags of its own say."""
    path = tmp_path / "old.tif"
    stream = oracles.jpeg(oracles.picture(64, 48), quality=90)
    tags = {256: 48, 257: 64, 258: (8, 8, 8), 259: 6, 262: 6, 277: 3, 278: 64, 530: (2, 2)}
    oracles.tiff(path, stream, tags | {513: 8, 514: len(stream)})
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    with pytest.warns(UserWarning, match="slower"):
        np.testing.assert_array_equal(all_pixels(path), expected)


def test_jpeg_of_12_bits_is_cut_to_8(tmp_path):
    path = tmp_path / "deep.tif"
    data = oracles.picture(64, 64).astype(np.uint16) << 4
    options = {"compression": "jpeg", "tile": (32, 32), "bitspersample": 12}
    tifffile.imwrite(path, data, photometric="rgb", **options)
    with pytest.warns(UserWarning, match="slower"):
        np.testing.assert_array_equal(all_pixels(path), oracles.pixels(path))


# --- bad ----------------------------------------------------------------------------------------


def test_pages_in_other_files_are_not_read_from_this_one(tmp_path):
    names = [f"urn:uuid:{uuid.uuid4()}" for _ in range(2)]
    parts = "".join(
        f'<TiffData FirstC="{k}" IFD="0" PlaneCount="1"><UUID FileName="n{k}.ome.tif">{name}</UUID>'
        "</TiffData>"
        for k, name in enumerate(names)
    )
    channels = "".join(f'<Channel ID="Channel:0:{k}" SamplesPerPixel="1"/>' for k in range(2))
    space = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    for k, name in enumerate(names):
        xml = (
            f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{space}" UUID="{name}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" BigEndian="false" DimensionOrder="XYCZT" '
            f'SizeC="2" SizeT="1" SizeX="30" SizeY="20" SizeZ="1" Type="uint8">{channels}{parts}'
            "</Pixels></Image></OME>"
        )
        options = {"photometric": "minisblack", "metadata": None, "description": xml.encode()}
        tifffile.imwrite(tmp_path / f"n{k}.ome.tif", np.full((20, 30), k, np.uint8), **options)
    with pytest.raises(NotImplementedError, match=r"n0\.ome\.tif: expected all pages in one file"):
        open_image(tmp_path / "n0.ome.tif", channels=(1,))


def test_a_stack_that_lists_one_page_is_not_taken_for_it(tmp_path):
    path = tmp_path / "stack.tif"
    stack = np.zeros((4, 100, 120), np.uint8)
    options = {"photometric": "minisblack", "metadata": {"axes": "ZYX"}, "truncate": True}
    tifffile.imwrite(path, stack, **options)
    with pytest.raises(NotImplementedError, match=r"stack\.tif: expected a page for each plane"):
        open_image(path)


def test_a_block_of_terabytes_is_an_error_not_an_abort(tmp_path):
    """Few pixels' worth of bytes that claim 64 samples of 16 bits each."""
    path = tmp_path / "bomb.tif"
    tags = {256: 32768, 257: 32768, 259: 8, 262: 1, 277: 64, 278: 32768, 258: (16,) * 64}
    oracles.tiff(path, b"x" * 64, tags)
    code = f"""
        import json, stfast
        try:
            stfast.extract_tiles(stfast.open_image({str(path)!r}, channels=(0,)), [[5, 5]], 8)
        except (stfast.FormatError, NotImplementedError) as error:
            print(json.dumps(str(error)))
    """
    assert "bomb.tif" in json.loads(run_python(code, memory_gb=6))


@pytest.mark.parametrize("tag", ["StripByteCounts", "StripOffsets"])
def test_lies_about_blocks_for_imagecodecs_are_named(tmp_path, tag):
    path = tmp_path / "lies.tif"
    options = {"photometric": "rgb", "compression": "lzma", "bigtiff": True, "rowsperstrip": 100}
    tifffile.imwrite(path, oracles.picture(100, 100), **options)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages.first.tags[tag].overwrite(1 << 40)
    with (
        pytest.warns(UserWarning, match="slower"),
        pytest.raises(FormatError, match=r"block 0: expected .*lies\.tif"),
    ):
        extract_tiles(path, [[5, 5]], 8)


def test_a_progressive_jpeg_of_gigabytes_is_refused(tmp_path):
    """All of its coefficients are held while it is decoded."""
    stream = bytearray(oracles.jpeg(oracles.picture(64, 64), progressive=True))
    frame = stream.index(b"\xff\xc2")
    stream[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    path = tmp_path / "huge.jpg"
    path.write_bytes(stream)
    code = f"""
        import stfast
        try:
            stfast.extract_tiles({str(path)!r}, [[5, 5]], 8)
        except stfast.FormatError as error:
            print("huge.jpg" in str(error))
    """
    assert run_python(code, memory_gb=6).strip() == "True"


@pytest.mark.parametrize("level", [3, -2, 0.0, True, None])
def test_a_level_that_is_not_there_is_named(tmp_path, level):
    Image.fromarray(oracles.picture(50, 60)).save(tmp_path / "a.png")
    with pytest.raises(IndexError, match=r"a\.png: expected a level from 0 to 0, got"):
        open_image(tmp_path / "a.png").read_region((0, 0), level, (5, 5))


@pytest.mark.parametrize("channels", ["12", [0.7], [None]])
def test_channels_that_are_no_numbers_are_refused(tmp_path, channels):
    path = tmp_path / "stack.tif"
    stack = np.zeros((4, 32, 32), np.uint8)
    tifffile.imwrite(path, stack, photometric="minisblack", metadata=None)
    with pytest.raises(ValueError, match="channels"):
        open_image(path, channels=channels)
