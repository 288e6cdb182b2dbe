"""Tiles in files: what others read from them is what was cut, whole or not at all, resumable.

Shards are opened by the packages that they are for: webdataset, zarr and Pillow. A run is
killed with SIGKILL at many moments and resumed; it must end in the same bytes.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
import zarr
from PIL import Image

import oracles
from oracles import WORKERS, tree
from stfast import FormatError, extract_tiles, write_tiles

HEIGHT, WIDTH, N = 300, 400, 130
NAMES = ["a/b", "c.d", "50%", "µ 1", "..", " x ", *(f"spot-{i}" for i in range(N - 6))]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("write") / "picture.tif"
    options = {"photometric": "rgb", "compression": "deflate", "tile": (64, 64)}
    tifffile.imwrite(path, oracles.picture(HEIGHT, WIDTH), **options)
    return path


@pytest.fixture(scope="module")
def centers():
    """Spots in no order, some of them partly or wholly off the picture."""
    return np.random.default_rng(0).uniform(-0.1, 1.1, (N, 2)) * (WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def tiles(path, centers):
    valid = np.empty(N, np.float32)
    return extract_tiles(path, centers, 40, span=50, valid=valid), valid


def contents(folder):
    """Every file below a folder, byte for byte."""
    files = (p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


CALL = {"size": 40, "span": 50, "shard_size": 32}
KINDS = [
    ("wds", "jpeg"),
    ("wds", "png"),
    ("wds", "raw"),
    ("zarr", "raw"),
    ("zarr", "zstd"),
    ("folder", "png"),
    ("folder", "jpeg"),
    ("folder", "raw"),
]


@pytest.mark.parametrize(("container", "encoding"), KINDS)
def test_the_same_bytes_for_any_number_of_workers(path, centers, tmp_path, container, encoding):
    call = CALL | {"container": container, "encoding": encoding, "names": NAMES}
    written = [
        contents(write_tiles(path, centers, tmp_path / str(n), workers=n, **call).output)
        for n in WORKERS
    ]
    assert written[0] == written[1] == written[2]
    assert not [name for name in tree(tmp_path) if ".part" in name]


def check_table(output, centers, valid):
    """The table beside the tiles; rows in the order of the tiles."""
    table = pl.read_parquet(output / "spots.parquet")
    row = table["row"].to_numpy()
    assert sorted(row) == list(range(N))
    assert table["spot"].to_list() == [NAMES[i] for i in row]
    np.testing.assert_array_equal(table.select("x", "y").to_numpy(), centers[row])
    np.testing.assert_array_equal(table["valid"].to_numpy(), valid[row])
    assert table["fault"].null_count() == N
    return row


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
def test_tar_shards_are_what_webdataset_reads(path, centers, tiles, tmp_path, encoding):
    wds = pytest.importorskip("webdataset")
    call = CALL | {"container": "wds", "encoding": encoding, "names": NAMES}
    report = write_tiles(path, centers, tmp_path / "out", **call)
    row = check_table(report.output, centers, tiles[1])
    shards = sorted(map(str, report.output.glob("*.tar")))
    assert [Path(s).name for s in shards] == [f"tiles-{i:06}.tar" for i in range(5)]
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert len(samples) == N
    assert len({sample["__key__"] for sample in samples}) == N
    kind = {"jpeg": "jpg", "png": "png", "raw": "npy"}[encoding]
    for sample, i in zip(samples, row, strict=True):
        assert sample["json"] == {"spot": NAMES[i], "x": centers[i, 0], "y": centers[i, 1]}
        if encoding == "jpeg":
            expected = oracles.stream_pixels(oracles.jpeg(tiles[0][i], quality=95, subsampling=0))
            np.testing.assert_array_equal(sample[kind], expected)
        else:
            np.testing.assert_array_equal(sample[kind], tiles[0][i])


def test_members_say_nothing_of_when_and_by_whom(path, centers, tmp_path):
    output = write_tiles(path, centers, tmp_path / "out", container="wds", **CALL).output
    with tarfile.open(output / "tiles-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert "/" not in member.name


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_a_zarr_array_is_what_zarr_python_reads(path, centers, tiles, tmp_path, encoding):
    call = CALL | {"encoding": encoding, "names": NAMES}
    output = write_tiles(path, centers, tmp_path / "out.zarr", **call).output
    row = check_table(output, centers, tiles[1])
    array = zarr.open_group(output, mode="r")["tiles"]
    assert array.shape == (N, 40, 40, 3)
    assert (array.chunks, array.shards) == ((1, 40, 40, 3), (32, 40, 40, 3))
    np.testing.assert_array_equal(array[:], tiles[0][row])
    np.testing.assert_array_equal(array[129], tiles[0][row[129]])


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_a_folder_holds_a_picture_a_spot(path, centers, tiles, tmp_path, encoding):
    call = CALL | {"container": "folder", "encoding": encoding, "names": NAMES}
    output = write_tiles(path, centers, tmp_path / "out", **call).output
    check_table(output, centers, tiles[1])
    suffix = {"png": "png", "jpeg": "jpg"}[encoding]
    stems = {p.stem for p in output.glob(f"*.{suffix}")}
    safe = ["a%2Fb", "c.d", "50%25", "µ 1", "%2E%2E", "%20x%20", *NAMES[6:]]
    assert stems == set(safe)
    for name, tile in zip(safe, tiles[0], strict=True):
        with Image.open(output / f"{name}.{suffix}") as image:
            found = np.asarray(image)
        stream = oracles.jpeg(tile, quality=95, subsampling=0)
        expected = oracles.stream_pixels(stream) if encoding == "jpeg" else tile
        np.testing.assert_array_equal(found, expected)


def test_npy_keeps_the_order_of_the_spots(path, centers, tiles, tmp_path):
    report = write_tiles(path, centers, tmp_path / "t.npy", names=NAMES, size=40, span=50)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), tiles[0])
    table = pl.read_csv(tmp_path / "t.csv")
    assert table["spot"].to_list() == NAMES
    np.testing.assert_array_equal(table["valid"].to_numpy().astype(np.float32), tiles[1])
    np.testing.assert_array_equal(report.valid, tiles[1])
    assert tree(tmp_path) == ["t.csv", "t.npy"]


def test_the_papers_recipe_is_written_as_the_paper_writes_it(path, centers, tmp_path):
    """`crop((x - r, y - r, x + r, y + r))`, a PNG a spot, of whatever size that has."""
    r = 13.4
    call = {"mode": "pil-crop", "size": None, "span": 2 * r, "container": "folder"}
    inside = centers[((centers > 0) & (centers < (WIDTH, HEIGHT))).all(axis=1)]
    output = write_tiles(path, inside, tmp_path / "out", **call).output
    image = Image.fromarray(oracles.pixels(path))
    sizes = set()
    for number, (x, y) in enumerate(inside):
        expected = image.crop((x - r, y - r, x + r, y + r))
        sizes.add(expected.size)
        with Image.open(output / f"{number}.png") as found:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert len(sizes) > 1


def test_the_report_says_what_was_done(path, centers, tiles, tmp_path):
    report = write_tiles(path, centers, tmp_path / "out", container="wds", **CALL)
    np.testing.assert_array_equal(report.valid, tiles[1])
    assert report.written == N
    assert report.outside == (tiles[1] == 0).sum()
    assert report.partial == ((tiles[1] > 0) & (tiles[1] < 1)).sum()
    assert report.bad == {}
    assert report.blocks == 5 * 7
    assert report.touched == HEIGHT * WIDTH
    assert report.amplification == pytest.approx(5 * 7 * 64 * 64 / (HEIGHT * WIDTH))


def test_no_spots_give_an_output_without_tiles(path, tmp_path):
    for container in ("wds", "zarr", "folder"):
        call = CALL | {"container": container}
        output = write_tiles(path, np.empty((0, 2)), tmp_path / container, **call).output
        assert len(pl.read_parquet(output / "spots.parquet")) == 0


# --- damage ------------------------------------------------------------------------------------


def bend(path, tmp_path):
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        content[page.dataoffsets[9] : page.dataoffsets[9] + page.databytecounts[9]] = bytes(
            page.databytecounts[9]
        )
    (tmp_path / "bent.tif").write_bytes(content)
    return tmp_path / "bent.tif"


@pytest.mark.parametrize("container", ["wds", "zarr", "folder"])
def test_damage_is_filled_and_listed_in_the_table(path, centers, tmp_path, container):
    bent = bend(path, tmp_path)
    valid = np.empty(N, np.float32)
    with pytest.warns(UserWarning, match="damaged"):
        extract_tiles(bent, centers, 40, span=50, on_error="fill", valid=valid)
    call = CALL | {"container": container, "on_error": "fill"}
    report = write_tiles(bent, centers, tmp_path / "out", **call)
    table = pl.read_parquet(report.output / "spots.parquet")
    listed = table.filter(pl.col("fault").is_not_null())
    assert sorted(listed["row"].to_list()) == sorted(report.bad)
    assert report.bad
    assert all("block 1,2" in fault for fault in listed["fault"])
    np.testing.assert_array_equal(report.valid, valid)


def test_damage_raises_and_leaves_only_what_can_be_resumed(path, centers, tmp_path):
    bent = bend(path, tmp_path)
    with pytest.raises(FormatError, match=r"block 1,2.*bent\.tif"):
        write_tiles(bent, centers, tmp_path / "out", container="wds", **CALL)
    assert not (tmp_path / "out").exists()


# --- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["a"]}, "names: expected 2, got 1"),
        ({"names": ["a", "a"]}, "names: expected unique ones, got 'a' more than once"),
        ({"names": ["a", None]}, "names: expected texts, got 1 missing"),
        ({"names": [1, "a"]}, "names: expected texts"),
        ({"names": ["", "a"]}, "names: expected 1 to 200 bytes"),
        ({"names": ["a", "b" * 300]}, "names: expected 1 to 200 bytes, got 300"),
        ({"container": "zip"}, "container: expected one of wds"),
        ({"container": None}, "container: expected wds, zarr, folder or npy for out, got none"),
        ({"encoding": "gif"}, "encoding: expected one of jpeg, png, raw for wds"),
        ({"quality": 101}, "quality: expected 1 to 100"),
        ({"shard_size": 0}, "shard_size"),
        ({"container": "npy"}, r"output: expected a name ending in \.npy"),
        ({"container": "zarr", "size": None, "span": 9.5, "mode": "pil-crop"}, "windows differ"),
    ],
)
def test_bad_arguments_raise_and_leave_nothing(path, tmp_path, arguments, message):
    call = {"container": "wds", "size": 8} | arguments
    with pytest.raises(ValueError, match=message):
        write_tiles(path, [[50.0, 50], [60.5, 60]], tmp_path / "out", **call)
    assert tree(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        write_tiles(path, [[50, 50]], tmp_path / "gone" / "out", container="wds")


def test_npy_bytes_have_numpys_header(path, tmp_path):
    call = {"container": "folder", "encoding": "raw", "size": 12}
    output = write_tiles(path, [[50, 50]], tmp_path / "out", **call).output
    stream = io.BytesIO()
    np.save(stream, extract_tiles(path, [[50, 50]], 12)[0])
    assert (output / "0.npy").read_bytes() == stream.getvalue()
