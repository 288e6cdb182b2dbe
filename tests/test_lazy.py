"""Matrices that are computed when they are asked for: dask's, in any chunks."""

import gc
import tracemalloc
import weakref

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import stfast
from oracles import assert_same, at_any_workers, binned, run_python
from oracles_hvg import FLAVORS, adata_of, heavy_tailed, our_table
from stfast import _lazy
from stfast.hvg import source

N, GENES = 9000, 40
"""Rows of three blocks of 4,096, the last one partial."""

CHUNKS = {
    "rows": ((1000,) * 9, (GENES,)),
    "unequal": ((1, 5000, 0, 3999), (GENES,)),
    "both ways": ((4096, 4096, 808), (7, 0, 20, 13)),
    "columns": ((N,), (10,) * 4),
    "one": ((N,), (GENES,)),
}
KINDS = {
    "dense": None,
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "coo_matrix": sparse.coo_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "coo_array": sparse.coo_array,
}


def lazily(dense, chunks, kind="dense"):
    array = da.from_array(np.asarray(dense), chunks=chunks)
    return array if KINDS[kind] is None else array.map_blocks(KINDS[kind])


@pytest.fixture(scope="module")
def counts():
    return heavy_tailed(N, GENES, seed=9, umi=60.0)


@pytest.fixture(params=[1, 1 << 23], ids=["short stretches", "one stretch"])
def stretches(request, monkeypatch):
    monkeypatch.setattr(source, "_STRETCH_VALUES", request.param)


@pytest.fixture(params=["in order", "shuffled"])
def places(request):
    order = np.arange(N)
    if request.param == "shuffled":
        order = np.random.default_rng(3).permutation(N)
    return {"rows": order // 100, "cols": order % 100}


# --- the bits of memory ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.usefixtures("stretches")
def test_chunks_change_no_bit_of_bins(kind, chunks, counts, places):
    array = lazily(counts, CHUNKS[chunks], kind)
    found = stfast.aggregate_bins(array, **places, factor=4)
    matrix, rows, cols = binned(counts, places["rows"], places["cols"], 4)
    np.testing.assert_array_equal(found.matrix.toarray(), matrix.toarray())
    np.testing.assert_array_equal((found.rows, found.cols), (rows, cols))
    memory = stfast.aggregate_bins(sparse.csr_matrix(counts), **places, factor=4)
    assert_same(found.matrix, memory.matrix)


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i2", "u4", "i8", "u8", "f4", "f8", "f2", ">i4", ">f8"]
)
@pytest.mark.parametrize("chunks", ["unequal", "both ways"])
@pytest.mark.usefixtures("stretches")
def test_sums_have_the_dtype_of_those_in_memory(dtype, chunks, counts, places):
    values = counts.astype(dtype)
    if np.dtype(dtype).kind == "f":
        values = (values * np.random.default_rng(1).random(values.shape)).astype(dtype)
    expected = stfast.aggregate_bins(values, **places, factor=4).matrix
    array = lazily(values, CHUNKS[chunks])
    assert_same(
        at_any_workers(
            lambda n: stfast.aggregate_bins(array, **places, factor=4, workers=n).matrix
        ),
        expected,
    )


@pytest.mark.usefixtures("stretches")
def test_labels_sum_lazy_rows_too(counts):
    labels = np.arange(N) * 7 % 31 - 1
    found = stfast.aggregate_bins(lazily(counts, CHUNKS["both ways"], "csr_array"), labels=labels)
    expected = stfast.aggregate_bins(counts, labels=labels)
    assert_same(tuple(found), tuple(expected))


def test_sums_beyond_int32_become_int64_and_beyond_int64_raise():
    values = np.full((6000, 2), 2**31 - 1, np.int32)
    values[:, 1] = 0
    found = stfast.aggregate_bins(lazily(values, (1000, 1)), labels=np.zeros(6000, int))
    assert found.matrix.dtype == np.int64
    assert found.matrix.toarray().tolist() == [[6000 * (2**31 - 1), 0]]
    with pytest.raises(OverflowError, match="does not fit int64"):
        stfast.aggregate_bins(
            lazily(np.full((6000, 1), 2**61), (1000, 1)), labels=np.zeros(6000, int)
        )


def test_sums_that_float32_takes_for_zero_are_not_stored():
    values = np.array([[1e-45, 2.0], [-1e-45, 1.0], [0.0, 0.0]], np.float32)
    places = {"rows": [0, 0, 1], "cols": [0, 1, 0], "factor": 2}
    found = stfast.aggregate_bins(lazily(values, (1, 2)), **places)
    assert_same(found.matrix, stfast.aggregate_bins(values, **places).matrix)
    assert found.matrix.nnz == 1


def test_no_rows_and_no_columns_are_summed_as_in_memory():
    for shape in ((0, 3), (4, 0)):
        values = np.zeros(shape, np.uint8)
        places = {"rows": np.arange(shape[0]), "cols": np.arange(shape[0]), "factor": 2}
        found = stfast.aggregate_bins(da.from_array(values), **places)
        assert_same(found.matrix, stfast.aggregate_bins(values, **places).matrix)


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize(("kind", "chunks"), [("csr_matrix", "unequal"), ("dense", "both ways")])
@pytest.mark.usefixtures("short")
def test_chunks_change_no_bit_of_a_flavor(flavor, kind, chunks, counts):
    adata = adata_of(counts, flavor, batches=2)
    lazy = adata.copy()
    lazy.X = lazily(adata.X.toarray(), CHUNKS[chunks], kind)
    for options in ({}, {"batch_key": "batch"}):
        expected = our_table(adata, flavor, 9, **options)
        assert_same(our_table(lazy, flavor, 9, **options), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_and_bare_arrays_are_those_of_memory(kind, counts):
    array = lazily(counts, CHUNKS["both ways"], kind)
    found, expected = stfast.gene_moments(array), stfast.gene_moments(counts)
    assert_same(found.table, expected.table)
    assert found.totals.equals(expected.totals)
    table = stfast.highly_variable_genes(array, n_top_genes=5)
    assert_same(table, stfast.highly_variable_genes(counts, n_top_genes=5))


def test_the_papers_matrices_take_lazy_slides(counts):
    names = [f"g{i}" for i in range(GENES)]
    adata = AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=names))
    lazy = AnnData(lazily(counts, CHUNKS["both ways"], "csr_matrix"), var=adata.var)
    for recipe in (stfast.hvg_rank_combined, stfast.hvg_overlap):
        np.testing.assert_array_equal(recipe([lazy], 7).X, recipe([adata], 7).X)


def test_genes_twice_in_a_chunk_are_added_and_the_chunk_is_left_as_it_was():
    untidy = sparse.csr_matrix(
        (np.array([1, 2, 4, 3]), np.array([2, 0, 2, 1]), np.array([0, 3, 4])), shape=(2, 3)
    )
    array = da.from_array(untidy, chunks=(2, 3), asarray=False)
    found, expected = stfast.gene_moments(array), stfast.gene_moments(untidy.toarray())
    assert_same(found.table, expected.table)
    assert untidy.indices.tolist() == [2, 0, 2, 1]


# --- bounds ------------------------------------------------------------------------------------


class Alive:
    """How many chunks there are at a time, and were made in all."""

    def __init__(self):
        self.now = self.most = self.made = 0

    def __call__(self, block):
        chunk = sparse.csr_matrix(block)
        self.now, self.made = self.now + 1, self.made + 1
        self.most = max(self.most, self.now)
        weakref.finalize(chunk, self.end)
        return chunk

    def end(self):
        self.now -= 1


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("what", ["bins", "moments"])
def test_no_more_chunks_are_alive_than_a_stretch_has(what):
    """4,096 rows are four chunks and two in part; all would be 100."""
    alive = Alive()
    array = da.ones((100_000, 8), chunks=(1000, 8)).map_blocks(
        alive, meta=sparse.csr_matrix((0, 0))
    )
    ask = {
        "bins": lambda: stfast.aggregate_bins(array, labels=np.arange(100_000) // 50),
        "moments": lambda: stfast.gene_moments(array),
    }[what]
    with dask.config.set(scheduler="synchronous"):
        ask()
        gc.collect()
        assert alive.made == 100, "each chunk is computed once in a pass"
        assert alive.most <= 12
        held = array.persist()
        assert alive.most >= 100, "the count cannot fail"
    del held


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(source, "_STRETCH_VALUES", 1)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("chunks", [(1000, 64), (4096, 16)])
def test_memory_is_that_of_a_stretch(chunks):
    n = 60_000
    array = da.random.default_rng(1).poisson(1.0, (n, 64), chunks=chunks)
    labels = np.arange(n) // 100

    def peak(call):
        gc.collect()
        tracemalloc.start()
        call()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    with dask.config.set(scheduler="synchronous"):
        whole = peak(array.compute)
        assert whole > n * 64 * 8
        assert peak(lambda: stfast.aggregate_bins(array, labels=labels)) < whole / 2
        assert peak(lambda: stfast.gene_moments(array)) < whole / 2


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", ["dense", "csc_matrix"])
def test_chunks_too_high_to_be_held_are_computed_for_each_stretch_and_said(
    kind, counts, monkeypatch
):
    array = lazily(counts, ((5000, 4000), (10,) * 4), kind)
    labels = np.arange(N) // 10
    expected = stfast.aggregate_bins(counts, labels=labels)
    monkeypatch.setattr(_lazy, "MOST_KEPT", 100_000)
    with pytest.warns(UserWarning, match=r"chunks of 5000 rows.*rechunk") as said:
        found = stfast.aggregate_bins(array, labels=labels)
    assert len(said) == 1
    assert_same(found, expected)


# --- refusals ----------------------------------------------------------------------------------


def test_unknown_chunks_are_refused_by_name(counts):
    array = da.from_array(counts, chunks=(1000, GENES))
    array = array[array.sum(axis=1) > 0]
    calls = [
        lambda: stfast.aggregate_bins(array, labels=np.zeros(N, int)),
        lambda: stfast.gene_moments(array),
        lambda: stfast.highly_variable_genes(array, n_top_genes=3),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"chunks of known sizes.*compute_chunk_sizes"):
            call()
    kept = counts[counts.sum(axis=1) > 0]
    found = stfast.gene_moments(array.compute_chunk_sizes())
    assert_same(found.table, stfast.gene_moments(kept).table)


def test_lazy_arrays_that_are_no_matrices_of_counts_are_refused_by_name():
    for bad, message in (
        (da.ones(5, chunks=2), "expected 2 dimensions, got 1"),
        (da.ones((4, 2), dtype=complex), "at most 64 bits, got dtype complex128"),
        (da.from_array(np.ones((4, 2), object), chunks=2), "at most 64 bits, got dtype object"),
    ):
        with pytest.raises(ValueError, match=message):
            stfast.aggregate_bins(bad, labels=[0] * bad.shape[0])
        with pytest.raises(ValueError, match=message):
            stfast.gene_moments(bad)


def test_chunks_of_other_shapes_than_they_say_are_refused():
    array = da.ones((10, 3), chunks=(5, 3)).map_blocks(
        lambda block: block[1:], meta=np.ones((0, 0))
    )
    with pytest.raises(ValueError, match=r"chunk of shape \(5, 3\), got \(4, 3\)"):
        stfast.aggregate_bins(array, labels=np.zeros(10, int))


def test_negative_counts_in_a_chunk_are_told():
    values = np.ones((50, 3))
    values[40, 1] = -1
    with pytest.raises(ValueError, match="got negative values"):
        stfast.gene_moments(da.from_array(values, chunks=(7, 3)))


# --- dask itself -------------------------------------------------------------------------------


def test_matrices_in_memory_need_no_dask():
    """As where it is not installed."""
    code = """
        import sys
        sys.modules["dask"] = sys.modules["dask.array"] = None
        import numpy as np
        import stfast
        assert stfast.aggregate_bins(np.ones((4, 2)), labels=[0, 0, 1, 1]).matrix.sum() == 8
        assert stfast.gene_moments(np.ones((4, 2))).n == 4
    """
    run_python(code)
