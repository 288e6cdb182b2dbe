"""HDF5: every dataset against h5py's own reading, every fault by name.

Files are written by h5py in each layout that it knows; then single bytes of them are spoilt.
"""

import logging
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import at_any_workers
from stfast import h5, read_h5_dataset
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
        file.create_dataset("edge", data=np.array([0.0, 2.0**63]), chunks=(2,))
    path = tmp_path / "a.h5"
    check(path, "whole", dtype="i4")
    check(path, "single", dtype="f8")
    check(path, "int", dtype="f4")
    check(path, "whole", dtype="f4")
    with pytest.raises(OverflowError, match="expected int64"):
        read_h5_dataset(path, "edge", dtype="i8")
    check(path, "edge", dtype="u8")
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


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("stored", NUMBERS)
def test_bounds_are_those_of_numpy(tmp_path, stored, filters):
    array = np.random.default_rng(3).integers(0, 90, 200).astype(stored)
    for place, value in ((7, 0), (7, 99), (70, 100), (199, 101), (199, -1)):
        if value < 0 and array.dtype.kind == "u":
            continue
        changed = array.copy()
        changed[place] = value
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("a", data=changed, chunks=(64,), **FILTERS[filters])
        with h5py.File(tmp_path / "a.h5") as file:
            dataset = Dataset(file["a"], 2)
            for wanted in ("i4", "i8", stored):
                if 0 <= value < 100:
                    np.testing.assert_array_equal(dataset.read(wanted, below=100), changed)
                else:
                    with pytest.raises(OverflowError):
                        dataset.read(wanted, below=100)


def test_a_fill_value_has_to_be_within_bounds_too(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (20,), "i4", chunks=(10,), fillvalue=-1)[:10] = 3
        dataset = Dataset(file["a"], 1)
        assert (dataset.read(below=9, stop=10) == 3).all()
        with pytest.raises(OverflowError, match="expected 0 to 8"):
            dataset.read(below=9)
