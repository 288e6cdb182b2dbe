"""HDF5 that is damaged, and h5ad: every fault by name, every array as anndata reads it."""

import zlib

import h5py
import numpy as np
import pytest
from anndata import AnnData, OldFormatWarning, read_h5ad
from scipy import sparse

from oracles import WORKERS
from stfast import FormatError, _core, _native, h5, read_h5_dataset
from stfast.h5 import Dataset

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
    return _native.Chunks(**(fields | changes))


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
        _core.read_chunks(chunked, 0, ("same", None), np.zeros(9, np.uint32), 1)
    with pytest.raises(ValueError, match="values read"):
        _core.read_chunks(chunked, 2**63, ("same", None), np.zeros(1, np.uint32), 1)
    with pytest.raises(ValueError, match="target: expected same, signed"):
        _core.read_chunks(chunked, 0, ("other", None), np.zeros(8, np.uint32), 1)


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
    # anndata says so of what it takes for an old file; from 0.13 on, at our line.
    old = pytest.warns(OldFormatWarning, match="without encoding metadata")
    with old, pytest.raises(FormatError, match=r"a\.h5ad: expected AnnData"):
        h5.read_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(FileNotFoundError, match=r"gone\.h5ad"):
        h5.read_h5ad(tmp_path / "gone.h5ad")
