"""HDF5: every dataset against h5py's own reading, every fault by name.

Files are written by h5py in each layout that it knows; then single bytes of them are spoilt.
"""

import logging
import tempfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from oracles import WORKERS, at_any_workers
from stfast import FormatError, _core, h5, read_h5_dataset
from stfast.h5 import Dataset

FILTERS = {
    "none": {},
    "shuffle": {"shuffle": True},
    "gzip": {"compression": "gzip", "compression_opts": 1},
    "both": {"compression": "gzip", "shuffle": True},
}
NUMBERS = ("i1", "u1", "<i2", ">i2", "<u2", "<i4", ">i4", "<u4", "<i8", ">i8", "<u8")
OTHERS = ("<f4", ">f4", "<f8", ">f8", "S1", "S7", "S45")


def values(rng, dtype, shape, largest=2**62):
    """Numbers of few live bytes and of many, of both signs where there are two."""
    if dtype[0] == "S":
        return rng.integers(0, 10**9, shape).astype(dtype)
    if dtype[-2] == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    low, high = max(info.min, -largest), min(info.max, largest)
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


def check(path, name, **options):
    found = at_any_workers(lambda n: read_h5_dataset(path, name, workers=n, **options))
    with h5py.File(path) as file:
        expected = np.asarray(file[name][()], file[name].dtype)
    wanted = np.dtype(options.get("dtype", expected.dtype)).newbyteorder("=")
    assert found.dtype == wanted
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected.astype(wanted))
    return found


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("dtype", [*NUMBERS, *OTHERS])
def test_a_dataset_is_what_h5py_reads(tmp_path, dtype, filters):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, shape, chunks in (
            ("vector", (1000,), (64,)),
            ("one chunk", (70,), (70,)),
            ("chunk larger", (5,), (64,)),
            ("matrix", (50, 33), (8, 7)),
            ("wide chunks", (9, 40), (9, 3)),
            ("cube", (13, 5, 9), (4, 5, 2)),
            ("empty", (0,), (4,)),
            ("no columns", (3, 0), (2, 2)),
        ):
            maxshape = tuple(None for _ in shape)
            options = {"chunks": chunks, "maxshape": maxshape, **FILTERS[filters]}
            file.create_dataset(name, data=values(rng, dtype, shape), **options)
        names = list(file)
    for name in names:
        check(tmp_path / "a.h5", name)


@pytest.mark.parametrize("dtype", [*NUMBERS, *OTHERS])
def test_contiguous_and_compact_datasets_are_read(tmp_path, dtype):
    rng = np.random.default_rng(1)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["vector"] = values(rng, dtype, 300_000)
        file["matrix"] = values(rng, dtype, (100, 37))
        file["scalar"] = values(rng, dtype, ())
        file.create_dataset("never written", (50,), dtype)
    for name in ("vector", "matrix", "scalar", "never written"):
        check(tmp_path / "a.h5", name)


@given(
    seed=st.integers(0, 2**31),
    shape=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    chunk=st.lists(st.integers(1, 12), min_size=4, max_size=4),
    dtype=st.sampled_from([*NUMBERS, *OTHERS]),
    filters=st.sampled_from(list(FILTERS)),
    start=st.integers(0, 45),
    stop=st.integers(0, 45),
)
def test_any_stretch_of_any_shape(*, seed, shape, chunk, dtype, filters, start, stop):
    rng = np.random.default_rng(seed)
    with h5py.File(f"{seed}.h5", "w", driver="core", backing_store=False) as memory:
        image = memory.create_dataset(
            "a",
            data=values(rng, dtype, shape),
            chunks=tuple(chunk[: len(shape)]),
            maxshape=(None,) * len(shape),
            **FILTERS[filters],
        )
        expected = image[start:stop]
        memory.flush()
        content = memory.id.get_file_image()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        path.write_bytes(content)
        with h5py.File(path) as file:
            dataset = Dataset(file["a"], 2)
            assert dataset.chunks is not None
            np.testing.assert_array_equal(dataset.read(None, start, stop), expected)


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, options in FILTERS.items():
            a = file.create_dataset(name, (100,), "i4", chunks=(8,), fillvalue=-7, **options)
            a[20:30] = np.arange(10)
            text = {"chunks": (8,), "fillvalue": b"none", **options}
            file.create_dataset(f"text {name}", (100,), "S9", **text)[3] = b"here"
            file.create_dataset(
                f"whole {name}", (100,), "f8", chunks=(8,), fillvalue=0.5, **options
            )
        names = list(file)
    for name in names:
        check(tmp_path / "a.h5", name)


def test_filters_left_out_for_single_chunks_are_left_out_here(tmp_path):
    """HDF5 stores a chunk plain when a filter fails on it: the mask says so."""
    plain = np.arange(16, dtype="<i4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("a", (48,), "<i4", chunks=(16,), compression="gzip", shuffle=True)
        a[:16] = plain
        planes = plain.view(np.uint8).reshape(16, 4).T
        a.id.write_direct_chunk((16,), np.ascontiguousarray(planes).tobytes(), filter_mask=0b10)
        a.id.write_direct_chunk((32,), plain.tobytes(), filter_mask=0b11)
    np.testing.assert_array_equal(check(tmp_path / "a.h5", "a"), np.tile(plain, 3))


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("stored", NUMBERS)
@pytest.mark.parametrize("wanted", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_integers_are_narrowed_exactly_or_refused(tmp_path, stored, wanted, filters):
    rng = np.random.default_rng(2)
    info = np.iinfo(wanted)
    for largest in (100, 2**15 - 1, 2**31 - 1, 2**62):
        array = values(rng, stored, 300, largest)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("a", data=array, chunks=(64,), **FILTERS[filters])
        if info.min <= int(array.min()) and int(array.max()) <= info.max:
            check(tmp_path / "a.h5", "a", dtype=wanted)
        else:
            with pytest.raises(OverflowError, match=r"/a \(.*a\.h5\): expected u?int\d+, got"):
                read_h5_dataset(tmp_path / "a.h5", "a", dtype=wanted)


@pytest.mark.parametrize("value", [-1, 2**31, 2**31 - 1, -(2**31), -(2**31) - 1, 2**32])
def test_the_edges_of_int32(tmp_path, value):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = np.array([0, 1, value, 2], "i8")
        file.create_dataset("a", data=array, chunks=(4,), shuffle=True)
    if -(2**31) <= value < 2**31:
        assert read_h5_dataset(tmp_path / "a.h5", "a", dtype="i4")[2] == value
    else:
        with pytest.raises(OverflowError, match="expected int32"):
            read_h5_dataset(tmp_path / "a.h5", "a", dtype="i4")


def test_other_numbers_are_converted_or_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("whole", data=np.array([0.0, 3.0, -2.0]), chunks=(2,))
        file.create_dataset("part", data=np.array([0.0, 0.5]), chunks=(2,))
        file.create_dataset("large", data=np.array([0.0, 2.0**31]), chunks=(2,))
        file.create_dataset("nan", data=np.array([0.0, np.nan]), chunks=(2,))
        file.create_dataset("single", data=np.array([0.1, 0.2], "f4"), chunks=(2,))
        file.create_dataset("int", data=np.array([1, 2]), chunks=(2,))
    path = tmp_path / "a.h5"
    check(path, "whole", dtype="i4")
    check(path, "single", dtype="f8")
    check(path, "int", dtype="f4")
    check(path, "whole", dtype="f4")
    for name in ("part", "large", "nan"):
        with pytest.raises(OverflowError, match=f"/{name} .*expected int32"):
            read_h5_dataset(path, name, dtype="i4")


@pytest.mark.parametrize(
    ("name", "reason", "options"),
    [
        ("lzf", "filter 32000", {"compression": "lzf", "chunks": (8,)}),
        ("fletcher32", "filter 3", {"fletcher32": True, "chunks": (8,)}),
        ("scale", "filter 6", {"scaleoffset": 4, "chunks": (8,)}),
    ],
)
def test_filters_that_rust_does_not_know_are_h5pys_and_said_once(
    tmp_path, caplog, name, reason, options
):
    h5._said.discard(reason)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(name, data=np.arange(50) % 9, **options)
    with caplog.at_level(logging.INFO, "stfast"):
        check(tmp_path / "a.h5", name)
        check(tmp_path / "a.h5", name)
    assert [record.getMessage() for record in caplog.records if reason in record.getMessage()] == [
        f"{reason} in {tmp_path / 'a.h5'}: read by h5py"
    ]


def test_types_that_rust_does_not_know_are_h5pys(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["pairs"] = np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])
        file["bool"] = np.array([True, False])
        file["half"] = np.arange(4, dtype="f2")
        file["enum"] = np.array([1, 0], h5py.enum_dtype({"A": 0, "B": 1}, "i4"))
    for name in ("pairs", "bool", "half", "enum"):
        check(tmp_path / "a.h5", name)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.create_dataset("text", data=["a", "bc"], dtype=h5py.string_dtype())
    assert read_h5_dataset(tmp_path / "a.h5", "text").tolist() == [b"a", b"bc"]


def test_a_user_block_and_a_file_in_memory_are_h5pys(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file.create_dataset("a", data=np.arange(50), chunks=(8,))
    check(tmp_path / "a.h5", "a")
    with h5py.File(tmp_path / "none.h5", "w", driver="core", backing_store=False) as file:
        file.create_dataset("a", data=np.arange(50), chunks=(8,))
        assert read_h5_dataset(file, "a").tolist() == list(range(50))


def test_an_open_file_and_a_group_will_do(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("g/a", data=np.arange(50), chunks=(8,))
        assert read_h5_dataset(file, "g/a").tolist() == list(range(50))
        a[3] = 99
        assert read_h5_dataset(file["g"], "a")[3] == 99


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
def test_every_index_of_chunks_that_hdf5_has(tmp_path, libver):
    rng = np.random.default_rng(3)
    with h5py.File(tmp_path / "a.h5", "w", libver=(libver, "latest")) as file:
        for name, shape, chunks, maxshape in (
            ("fixed", (100, 9), (8, 4), (100, 9)),
            ("one axis grows", (100, 9), (8, 4), (None, 9)),
            ("both grow", (100, 9), (8, 4), (None, None)),
            ("single", (100, 9), (100, 9), None),
        ):
            data = values(rng, "<i4", shape)
            for kind, options in FILTERS.items():
                file.create_dataset(
                    f"{name} {kind}", data=data, chunks=chunks, maxshape=maxshape, **options
                )
        names = list(file)
    for name in names:
        check(tmp_path / "a.h5", name)


def test_more_than_two_to_the_31_values_are_addressed(tmp_path):
    """A dataset of three milliard values of which the file holds two chunks."""
    n, far = 3_000_000_000, 2**31 + 65_536 * 3
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("a", (n,), "i4", chunks=(65_536,), compression="gzip")
        a[far : far + 10] = np.arange(10)
        a[n - 2 :] = [7, 8]
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = Dataset(file["a"], 2)
        assert dataset.read(None, far - 1, far + 4).tolist() == [0, 0, 1, 2, 3]
        assert dataset.read("i8", n - 3).tolist() == [0, 7, 8]


# --- broken ------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """A file, where its chunks lie, and a way to change its bytes."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        a = file.create_dataset(
            "a", data=np.arange(1000), chunks=(100,), compression="gzip", shuffle=True
        )
        chunks = [a.id.get_chunk_info(i) for i in range(10)]

    def spoil(change):
        content = bytearray(path.read_bytes())
        change(content, chunks[4])
        path.write_bytes(content)
        return path

    return spoil


def test_a_chunk_that_is_damaged_is_named(broken):
    def zero(content, chunk):
        content[chunk.byte_offset + 2 : chunk.byte_offset + 12] = bytes(10)

    with pytest.raises(FormatError, match=r"chunk 4 of /a: expected 800 deflated bytes.*a\.h5"):
        read_h5_dataset(broken(zero), "a")


def test_a_chunk_that_inflates_to_less_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("a", (20,), "i4", chunks=(10,), compression="gzip")
        a.id.write_direct_chunk((0,), zlib.compress(bytes(36)))
        a.id.write_direct_chunk((10,), zlib.compress(bytes(44)))
    with pytest.raises(FormatError, match="chunk 0 of /a: expected 40 deflated bytes, got 36"):
        read_h5_dataset(tmp_path / "a.h5", "a", workers=1)


def test_a_plain_chunk_that_is_short_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("a", (10,), "i4", chunks=(10,), compression="gzip")
        a.id.write_direct_chunk((0,), bytes(12), filter_mask=1)
    with pytest.raises(FormatError, match="chunk 0 of /a: expected 40 bytes, got 12 bytes"):
        read_h5_dataset(tmp_path / "a.h5", "a")


def test_a_file_cut_under_an_open_handle_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.arange(100_000), chunks=(100,))
    with h5py.File(path) as file:
        dataset = Dataset(file["a"], 1)
        size = path.stat().st_size
        with path.open("r+b") as handle:
            handle.truncate(size // 2)
        dataset = Dataset(file["a"], 1)
        with pytest.raises(FormatError, match=r"chunk \d+ of /a: expected 800 bytes at offset"):
            dataset.read()


def test_what_is_no_file_or_no_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.h5"):
        read_h5_dataset(tmp_path / "gone.h5", "a")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(FormatError, match=r"text\.h5: expected an HDF5 file"):
        read_h5_dataset(tmp_path / "text.h5", "a")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("g")
    with pytest.raises(KeyError, match="b"):
        read_h5_dataset(tmp_path / "a.h5", "b")
    with pytest.raises(FormatError, match=r"a\.h5: expected a dataset as g, got a group"):
        read_h5_dataset(tmp_path / "a.h5", "g")
    with pytest.raises(ValueError, match="workers"):
        read_h5_dataset(tmp_path / "a.h5", "g", workers=0)


def header(**changes):
    """A table of two chunks of four values each, which is then made false."""
    fields = {
        "name": "/a",
        "shape": (8,),
        "chunk": (4,),
        "kind": "i",
        "size": 4,
        "big_endian": False,
        "shuffle": None,
        "deflate": None,
        "offsets": np.array([0, 16], np.uint64),
        "lengths": np.array([16, 16], np.uint64),
        "masks": np.zeros(2, np.uint32),
        "places": np.array([0, 4], np.uint64),
    }
    return h5._Header(**(fields | changes))


@pytest.mark.parametrize(
    "lie",
    [
        {"places": np.array([0, 5], np.uint64)},
        {"places": np.array([0, 8], np.uint64)},
        {"places": np.array([4, 0], np.uint64)},
        {"places": np.array([0, 0], np.uint64)},
        {"places": np.array([0], np.uint64)},
        {"masks": np.zeros(1, np.uint32)},
        {"chunk": (0,)},
        {"chunk": (4, 4)},
        {"chunk": (2**40,)},
        {"size": 0},
        {"size": 2**62, "chunk": (2**62,)},
        {"shape": ()},
    ],
)
def test_a_table_of_chunks_that_lies_is_refused(tmp_path, lie):
    (tmp_path / "a.h5").write_bytes(bytes(64))
    with pytest.raises(FormatError, match=r"chunks of /a: expected a table that fits"):
        _core.Chunked(str(tmp_path / "a.h5"), header(**lie))


def test_an_output_that_is_too_long_is_refused(tmp_path):
    (tmp_path / "a.h5").write_bytes(bytes(64))
    chunked = _core.Chunked(str(tmp_path / "a.h5"), header())
    with pytest.raises(ValueError, match="values read of a dataset: expected 8, got 9"):
        _core.read_chunks(chunked, 0, "same", np.zeros(9, np.uint32), 1)
    with pytest.raises(ValueError, match="values read"):
        _core.read_chunks(chunked, 2**63, "same", np.zeros(1, np.uint32), 1)
    with pytest.raises(ValueError, match="target: expected same, signed"):
        _core.read_chunks(chunked, 0, "other", np.zeros(8, np.uint32), 1)


# --- h5ad --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_an_h5ad_is_what_anndata_reads(tmp_path, make):
    rng = np.random.default_rng(4)
    adata = AnnData(make(rng.poisson(0.3, (60, 20)).astype(np.float32)))
    adata.obs["kind"] = np.array(["a", "b"] * 30)
    adata.obs["number"] = np.arange(60)
    adata.layers["double"] = sparse.csr_matrix(adata.X) * 2
    adata.obsm["spatial"] = rng.normal(size=(60, 2))
    adata.uns["some"] = {"words": np.array(["x", "yz"]), "number": 3}
    adata.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    expected = read_h5ad(tmp_path / "a.h5ad")
    for workers in WORKERS:
        found = h5.read_h5ad(tmp_path / "a.h5ad", workers=workers)
        assert type(found.X) is type(expected.X)
        for one, other in (
            (found.X, expected.X),
            (found.layers["double"], expected.layers["double"]),
        ):
            np.testing.assert_array_equal(
                sparse.csr_matrix(one).toarray(), sparse.csr_matrix(other).toarray()
            )
        assert found.obs.equals(expected.obs)
        assert found.var.equals(expected.var)
        np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
        assert found.uns["some"]["number"] == 3
        assert found.uns["some"]["words"].tolist() == ["x", "yz"]


def test_an_h5_that_is_no_anndata_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["a"] = [1]
    with pytest.raises(FormatError, match=r"a\.h5ad: expected AnnData"):
        h5.read_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(FileNotFoundError, match=r"gone\.h5ad"):
        h5.read_h5ad(tmp_path / "gone.h5ad")
