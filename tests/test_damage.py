"""Damage: files cut short, bent, or whose headers lie, and the words they are refused with.

No input may crash, hang or panic, and none may pass for a picture it is not. Mutations and
claims of exabytes are tried in a Python of their own, with its memory limited.
"""

import io
import itertools
import json
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

import oracles
from oracles import WORKERS, run_python, tree
from stfast import FormatError, extract_tiles, open_image

HEIGHT, WIDTH = 90, 130


@pytest.fixture(scope="module")
def files(damageable):
    return damageable


# --- damaged blocks ----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    "name",
    [
        "deflate-tiles.tif",
        "jpeg-strips.tif",
        "zstd-tiles.tif",
        "packbits-strips.tif",
        "jpeg2000-tiles.tif",
        "webp-tiles.tif",
        "deep.tif",
        "raw-strip.tif",
        "plain.jpg",
        "plain.jp2",
        "plain.webp",
        "plain.png",
    ],
)
def test_a_file_that_was_cut_short_raises(files, tmp_path, name, share):
    content = files[name].read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    centers = [[x, y] for x in range(8, WIDTH + 8, 16) for y in range(8, HEIGHT, 16)]
    for workers in WORKERS:
        with pytest.raises(FormatError, match=name):
            extract_tiles(path, centers, 16, workers=workers)
    assert tree(tmp_path) == [name]


def damage(files, path, name, change):
    """Change the coded bytes of the second block of a tiled TIFF."""
    content = bytearray(files[name].read_bytes())
    with tifffile.TiffFile(files[name]) as tiff:
        page = tiff.pages.first
        start, length = page.dataoffsets[1], page.databytecounts[1]
    content[start : start + length] = change(bytes(content[start : start + length]))
    path.write_bytes(content)
    return path


CHANGES = {
    "zeros": lambda block: bytes(len(block)),
    "ones": lambda block: b"\xff" * len(block),
    "noise": lambda block: np.random.default_rng(0).bytes(len(block)),
    "half": lambda block: block[: len(block) // 2] + bytes(len(block) - len(block) // 2),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("codec", ["deflate", "lzw", "zstd", "jpeg", "jpeg2000", "webp"])
def test_a_broken_stream_names_its_block_and_its_file(files, tmp_path, codec, change):
    if change == "half" and codec in ("jpeg2000", "webp"):
        pytest.skip("these codecs have nothing that tells zeros from data")
    path = damage(files, tmp_path / "broken.tif", f"{codec}-tiles.tif", CHANGES[change])
    for workers in WORKERS:
        with pytest.raises(FormatError, match=r"block 0,1: expected .*, got .*\(.*broken\.tif\)"):
            extract_tiles(path, [[16, 16], [48, 16]], 32, workers=workers)
    good = extract_tiles(path, [[16, 16]], 32)
    np.testing.assert_array_equal(good, extract_tiles(files[f"{codec}-tiles.tif"], [[16, 16]], 32))


def test_the_first_broken_block_is_named_whatever_the_workers(files, tmp_path):
    content = files["deflate-tiles.tif"].read_bytes()
    with tifffile.TiffFile(files["deflate-tiles.tif"]) as tiff:
        start = tiff.pages.first.dataoffsets[2]
    path = tmp_path / "broken.tif"
    path.write_bytes(content[:start] + bytes(len(content) - start))
    centers = [[x, y] for x in range(8, WIDTH, 16) for y in range(8, HEIGHT, 16)]
    for workers in WORKERS * 3:
        with pytest.raises(FormatError, match="block 0,2"):
            extract_tiles(path, centers, 16, workers=workers)


def jpeg_of_segments():
    """A JPEG with restart markers, and where they stand."""
    stream = oracles.jpeg(oracles.picture(64, 256), quality=85, restart_marker_rows=1)
    markers = [
        i for i, (a, b) in enumerate(itertools.pairwise(stream)) if a == 255 and 0xD0 <= b < 0xD8
    ]
    return stream, markers


def test_a_jpeg_that_lacks_data_raises(tmp_path):
    stream, markers = jpeg_of_segments()
    path = tmp_path / "gap.jpg"
    path.write_bytes(stream[: markers[2] - 900] + stream[markers[2] :])
    with pytest.raises(FormatError, match=r"gap\.jpg"):
        extract_tiles(path, [[128, 32]], 64)


def test_stray_bytes_do_not_hide_that_a_jpeg_lacks_data(tmp_path):
    """Libjpeg keeps the text of its first warning only: a harmless one may come first."""
    stream, markers = jpeg_of_segments()
    path = tmp_path / "gap.jpg"
    stray = stream[: markers[0]] + b"\x12\x34\x56" + stream[markers[0] : markers[2] - 900]
    path.write_bytes(stray + stream[markers[2] :])
    with pytest.raises(FormatError, match=r"gap\.jpg"):
        extract_tiles(path, [[128, 32]], 64)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_jpeg_with_foreign_bytes_in_its_scan_raises(tmp_path, share):
    """A thousand bytes too many: libjpeg says how many it had to pass over at the end."""
    stream = oracles.jpeg(oracles.picture(256, 256), quality=85)
    at = int(len(stream) * share)
    path = tmp_path / "foreign.jpg"
    foreign = np.random.default_rng(0).integers(0, 255, 1000, dtype=np.uint8).tobytes()
    path.write_bytes(stream[:at] + foreign + stream[at:])
    with pytest.raises(FormatError, match=r"foreign\.jpg"):
        extract_tiles(path, [[128, 128]], 256)


@pytest.mark.parametrize("stray", [b"\0", b"\0\0", b"\xff" * 9])
def test_a_few_stray_bytes_at_the_end_of_a_jpeg_are_allowed(tmp_path, stray):
    stream = oracles.jpeg(oracles.picture(64, 64))
    path = tmp_path / "stray.jpg"
    path.write_bytes(stream[:-2] + stray + stream[-2:] + b"and after the end")
    expected = oracles.pixels(path)
    np.testing.assert_array_equal(extract_tiles(path, [[32, 32]], 64)[0], expected)


@pytest.mark.parametrize("samples", [1, 2])
def test_rgb_of_fewer_than_three_samples_is_refused(tmp_path, samples):
    path = tmp_path / "lies.tif"
    data = np.zeros((32, 32, samples), np.uint8)
    extra = {"extrasamples": ["unspecified"]} if samples == 2 else {}
    tifffile.imwrite(path, data.squeeze(), photometric="minisblack", metadata=None, **extra)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages.first.tags["PhotometricInterpretation"].overwrite(2)
    with pytest.raises((FormatError, NotImplementedError), match=r"lies\.tif"):
        extract_tiles(path, [[16, 16]], 8)


HUGE = """
    import json, stfast
    found = {{}}
    for path in {paths!r}:
        try:
            stfast.extract_tiles(path, [[5, 5]], 16)
        except (stfast.FormatError, NotImplementedError) as error:
            found[path] = str(error)
    print(json.dumps(found))
"""


def test_a_header_that_claims_a_huge_size_is_refused(tmp_path):
    """Files of a few hundred bytes that promise gigabytes to exabytes of pixels."""
    paths = []
    for side in (2**17, 2**20, 2**31 - 1):
        paths.append(tmp_path / f"{side}.png")
        paths[-1].write_bytes(oracles.png(side, side, bytes(1000)))
    for codec, shape in itertools.product(
        ["deflate", "lzw", "zstd", "jpeg"], [(2**20, 2**26), (2**16, 2**17)]
    ):
        paths.append(tmp_path / f"{codec}-{shape[0]}.tif")
        options = {"photometric": "rgb", "compression": codec, "rowsperstrip": 64}
        tifffile.imwrite(paths[-1], oracles.picture(64, 64), **options)
        with tifffile.TiffFile(paths[-1], mode="r+") as tiff:
            tags = tiff.pages.first.tags
            for name, value in zip(("ImageLength", "ImageWidth"), shape, strict=True):
                tags[name].overwrite(value, dtype="I")
            tags["RowsPerStrip"].overwrite(shape[0], dtype="I")
    found = json.loads(run_python(HUGE.format(paths=[str(p) for p in paths]), memory_gb=8))
    assert sorted(found) == sorted(map(str, paths))
    assert all(path in message for path, message in found.items())


# --- headers that lie ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*decoded by imagecodecs")
def test_a_header_that_ends_early_is_a_format_error(tmp_path):
    """Every prefix of a header, of every kind: FormatError, with the file's name."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, oracles.picture(16, 16), photometric="rgb")
    png = io.BytesIO()
    Image.fromarray(oracles.picture(16, 16)).save(png, "PNG")
    contents = {"tif": stream.getvalue()[:300], "png": png.getvalue()[:40]}
    contents["jpg"] = oracles.jpeg(oracles.picture(16, 16))[:600]
    odd = {}
    for kind, content in contents.items():
        path = tmp_path / f"cut.{kind}"
        for length in range(8, len(content) - 1, 1 if kind == "png" else 7):
            path.write_bytes(content[:length])
            try:
                extract_tiles(path, [[8, 8]], 8)
            except (FormatError, NotImplementedError) as error:
                if path.name not in str(error):
                    odd[f"{kind} of {length} bytes"] = repr(error)
            except Exception as error:
                odd[f"{kind} of {length} bytes"] = repr(error)
    assert not odd


def overwritten(path, **tags):
    """A small RGB TIFF some of whose tags say something else."""
    options = {"photometric": "rgb", "tile": (16, 16), "compression": "deflate", "metadata": None}
    tifffile.imwrite(path, oracles.picture(32, 32), **options)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in tags.items():
            dtype = "I" if name.startswith("Tile") and np.ndim(value) else None
            tiff.pages.first.tags[name].overwrite(value, dtype=dtype)
    return path


def test_a_tag_of_another_type_is_read_or_refused(tmp_path):
    """Negative, fractional, infinite, text: what no writer writes but a bent bit makes."""
    path, odd = tmp_path / "type.tif", {}
    names = ["ImageWidth", "ImageLength", "SamplesPerPixel", "TileWidth", "TileByteCounts"]
    names += ["PlanarConfiguration", "XResolution", "ResolutionUnit"]
    values = [("i", -1), ("i", [-1] * 4), ("f", 0.5), ("f", np.nan), ("d", 1e300), ("s", b"abc")]
    for name, (dtype, value) in itertools.product(names, values):
        overwritten(path)
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages.first.tags[name].overwrite(value, dtype=dtype)
        try:
            extract_tiles(path, [[0, 0]], 8)
        except (FormatError, NotImplementedError):
            continue
        except Exception as error:
            odd[f"{name} = {value}"] = repr(error)
    assert not odd


@pytest.mark.parametrize("tables", [("s", 0, "text"), ("H", 2, (1, 2)), ("I", 1, 2**31)])
def test_jpeg_tables_that_are_no_bytes_are_refused_or_not_needed(tmp_path, tables):
    path = tmp_path / "tables.tif"
    for codec in ("jpeg", "deflate"):
        options = {"photometric": "rgb", "compression": codec, "extratags": [(347, *tables, True)]}
        tifffile.imwrite(path, oracles.picture(32, 32), **options)
        try:
            found = extract_tiles(path, [[16, 16]], 32)[0]
        except FormatError as error:
            found = str(error)
        if isinstance(found, str):
            assert "tables.tif" in found
        else:
            np.testing.assert_array_equal(found, oracles.pixels(path))


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageWidth": 0},
        {"ImageLength": 0},
        {"TileWidth": 0},
        {"ImageWidth": 4000},
        {"ImageLength": 4000},
        {"TileWidth": 8},
        {"TileOffsets": [400]},
        {"TileByteCounts": [10, 10, 10]},
        {"SamplesPerPixel": 1},
        {"SamplesPerPixel": 2},
        {"SamplesPerPixel": 5},
        {"BitsPerSample": (8, 8, 16)},
    ],
    ids=lambda tags: " ".join(f"{name} {value}" for name, value in tags.items()),
)
def test_a_header_that_contradicts_itself_raises(tmp_path, tags):
    path = overwritten(tmp_path / "lies.tif", **tags)
    with pytest.raises((FormatError, NotImplementedError), match=r"lies\.tif"):
        extract_tiles(path, [[8, 8]], 8)


def test_a_block_past_the_end_of_the_file_raises(tmp_path):
    for offset in (10**6, 2**32 - 1):
        path = overwritten(tmp_path / "past.tif", TileOffsets=[offset] * 4)
        with pytest.raises(
            FormatError, match=r"block 0,0: expected \d+ bytes at offset .*past\.tif"
        ):
            extract_tiles(path, [[8, 8]], 8)
    path = overwritten(tmp_path / "long.tif", TileByteCounts=[2**32 - 1] * 4)
    with pytest.raises(FormatError, match=r"block 0,0: expected 4294967295 bytes.*long\.tif"):
        extract_tiles(path, [[8, 8]], 8)


def test_a_first_directory_past_the_end_raises(tmp_path):
    path = tmp_path / "nowhere.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 10**6))
    with pytest.raises(FormatError, match=r"nowhere\.tif"):
        open_image(path)


def test_a_window_of_terabytes_is_an_error_not_a_crash(files):
    """A window mostly outside the picture needs no more memory than the picture has."""
    code = f"""
        import stfast
        for span in (1e5, 1e6, 1.6e7):
            try:
                tile = stfast.extract_tiles({str(files["plain.png"])!r}, [[5, 5]], 16, span=span)
            except (ValueError, MemoryError) as error:
                print(type(error).__name__)
    """
    run_python(code, memory_gb=8)
