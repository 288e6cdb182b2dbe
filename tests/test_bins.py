"""Bins: sums against scipy's indicator product, and AnnData against the slide's own map.

Matrices come in every type and in every state that scipy allows (unsorted, doubled,
cancelling, explicit zeros) and, broken on purpose, in states that it does not.
"""

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import sparse

import oracles
import stfast
from oracles import WORKERS, assert_canonical, assert_same, at_any_workers
from stfast import aggregate_bins
from stfast.bins import Bins

DTYPES = ("int32", "int64", "float32", "float64")
FAR = 2**40


def random_csr(rng, n, genes, dtype="int32", index="int32"):
    """A CSR matrix with columns unsorted and doubled, zeros stored, signs that cancel."""
    lengths = rng.integers(0, 6, n) * (genes > 0)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(index)
    indices = rng.integers(0, max(genes, 1), indptr[-1]).astype(index)
    data = rng.integers(-3, 4, indptr[-1])
    if dtype.startswith("float"):
        data = data * 10.0 ** rng.integers(-3, 4, len(data)) / 3
    matrix = sparse.csr_matrix((n, genes), dtype=dtype)
    matrix.data, matrix.indices, matrix.indptr = data.astype(dtype), indices, indptr
    return matrix


def check_against_scipy(matrix, rows, cols, factor):
    """Compare with the oracle at 1, 2 and 5 workers; give the answer back."""
    found = at_any_workers(
        lambda n: aggregate_bins(matrix, rows=rows, cols=cols, factor=factor, workers=n)
    )
    assert isinstance(found, Bins)
    sums, bin_rows, bin_cols = oracles.binned(matrix, rows, cols, factor)
    assert found.rows.dtype == found.cols.dtype == np.int64
    np.testing.assert_array_equal(found.rows, bin_rows)
    np.testing.assert_array_equal(found.cols, bin_cols)
    assert found.matrix.shape == sums.shape
    np.testing.assert_array_equal(found.matrix.indptr, sums.indptr)
    np.testing.assert_array_equal(found.matrix.indices, sums.indices)
    np.testing.assert_array_equal(found.matrix.data, sums.data.astype(found.matrix.dtype))
    assert_canonical(found.matrix)
    assert found.matrix.has_canonical_format
    return found


# --- the array form ----------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 300),
    genes=st.integers(1, 130),
    dtype=st.sampled_from(DTYPES),
    index=st.sampled_from(["int32", "int64"]),
    reach=st.sampled_from([1, 3, 20, FAR]),
    factor=st.sampled_from([1, 2, 3, 4, 25, 3350]),
)
@example(seed=0, n=0, genes=5, dtype="int32", index="int32", reach=1, factor=4)
@example(seed=0, n=1, genes=1, dtype="float32", index="int64", reach=1, factor=1)
@example(seed=1, n=300, genes=64, dtype="float64", index="int64", reach=FAR, factor=3)
def test_sums_equal_scipys_indicator_product(*, seed, n, genes, dtype, index, reach, factor):
    rng = np.random.default_rng(seed)
    matrix = random_csr(rng, n, genes, dtype, index)
    rows, cols = rng.integers(-reach, reach + 1, (2, n))
    found = check_against_scipy(matrix, rows, cols, factor)
    assert found.matrix.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_thousands_of_bins_equal_scipys_too(dtype, index):
    rng = np.random.default_rng(3)
    matrix = random_csr(rng, 20_000, 700, dtype, index)
    rows, cols = np.divmod(rng.permutation(20_000), 141)
    assert len(check_against_scipy(matrix, rows, cols, 2).rows) > 4000


def test_marking_and_sorting_number_bins_alike():
    """A far square makes the frame too large to mark; the other bins must stay as they were."""
    rng = np.random.default_rng(5)
    matrix = random_csr(rng, 501, 9)
    rows, cols = rng.integers(-40, 40, (2, 501))
    near = check_against_scipy(matrix[:500], rows[:500], cols[:500], 4)
    rows[500], cols[500] = FAR, FAR
    far = check_against_scipy(matrix, rows, cols, 4)
    np.testing.assert_array_equal(far.rows[:-1], near.rows)
    assert (far.matrix[:-1] != near.matrix).nnz == 0
    assert far.rows[-1] == far.cols[-1] == FAR // 4


def test_the_farthest_coordinates_are_binned():
    ends = np.array([-(2**63), 2**63 - 1, 0])
    check_against_scipy(sparse.eye_array(3, dtype=np.int32), ends, ends[::-1], 1)


@pytest.mark.parametrize("kind", ["csc", "coo", "dense", "int16", "bool", "array", "list"])
def test_other_kinds_of_matrix_are_converted(kind):
    rng = np.random.default_rng(2)
    dense = rng.integers(0, 3, (40, 7)).astype(np.int32)
    given_as = {
        "csc": sparse.csc_matrix(dense),
        "coo": sparse.coo_matrix(dense),
        "dense": dense,
        "int16": dense.astype(np.int16),
        "bool": dense > 0,
        "array": sparse.csr_array(dense),
        "list": dense.tolist(),
    }[kind]
    rows, cols = rng.integers(0, 9, (2, 40))
    found = aggregate_bins(given_as, rows=rows, cols=cols, factor=4)
    plain = dense > 0 if kind == "bool" else dense
    assert (found.matrix != oracles.binned(plain, rows, cols, 4)[0]).nnz == 0


def test_counts_that_cancel_leave_nothing_stored():
    matrix = sparse.csr_matrix(np.array([[5, -2, 0], [-5, 2, 7]], np.int32))
    found = check_against_scipy(matrix, [0, 0], [0, 1], 2)
    assert found.matrix.indices.tolist() == [2]


def test_int32_sums_that_do_not_fit_become_int64():
    matrix = sparse.csr_matrix(np.array([[2**31 - 1, 1], [2**31 - 1, 1]], np.int32))
    found = at_any_workers(
        lambda n: aggregate_bins(matrix, rows=[0, 0], cols=[0, 0], factor=1, workers=n)
    )
    assert found.matrix.dtype == np.int64
    assert found.matrix.toarray().tolist() == [[2**32 - 2, 2]]


def test_int64_sums_are_exact_to_the_last_unit():
    matrix = sparse.csr_matrix(np.array([[2**62], [2**62 - 1], [-(2**62)]], np.int64))
    found = aggregate_bins(matrix, rows=[0, 0, 0], cols=[0, 0, 0], factor=1)
    assert found.matrix.toarray().tolist() == [[2**62 - 1]]


def test_int64_sums_that_do_not_fit_raise():
    matrix = sparse.csr_matrix(np.array([[2**62], [2**62]], np.int64))
    for workers in WORKERS:
        with pytest.raises(OverflowError, match="counts of a bin: a sum does not fit int64"):
            aggregate_bins(matrix, rows=[0, 0], cols=[0, 0], factor=1, workers=workers)


def test_uint64_counts_are_exact_or_refused():
    """2⁵³ + 1 has no double: rounding it without a word would not be an exact sum."""
    matrix = sparse.csr_matrix((2, 1), dtype=np.uint64)
    matrix.data, matrix.indices = np.array([2**53 + 1, 1], np.uint64), np.zeros(2, np.int32)
    matrix.indptr = np.array([0, 1, 2], np.int32)
    try:
        found = aggregate_bins(matrix, rows=[0, 0], cols=[0, 0], factor=1)
    except (ValueError, OverflowError):
        return
    assert int(found.matrix[0, 0]) == 2**53 + 2


def test_the_matrix_given_is_left_as_it_was():
    matrix = random_csr(np.random.default_rng(1), 50, 8)
    before = [part.copy() for part in (matrix.data, matrix.indices, matrix.indptr)]
    aggregate_bins(matrix, rows=np.arange(50), cols=np.zeros(50, int), factor=4)
    for part, was in zip((matrix.data, matrix.indices, matrix.indptr), before, strict=True):
        np.testing.assert_array_equal(part, was)


def test_progress_ends_at_the_number_of_bins():
    told = []
    matrix = random_csr(np.random.default_rng(1), 500, 8)
    found = aggregate_bins(
        matrix, rows=np.arange(500), cols=np.zeros(500, int), factor=4, progress=told.append
    )
    assert told[-1] == len(found.rows)
    assert told == sorted(told)


# --- bad matrices and positions ----------------------------------------------------------------


BROKEN = {
    "indptr that falls": ("indptr", [0, 4, 2, 6], ValueError, "never decrease.*after row 1"),
    "indptr below 0": ("indptr", [0, -4, 2, 6], ValueError, "indptr of a CSR matrix"),
    "indptr from 1": ("indptr", [1, 2, 4, 6], ValueError, "first indptr.*expected 0, got 1"),
    "indptr past the data": ("indptr", [0, 2, 4, 60], ValueError, "expected 6, got 60"),
    "indptr too huge": ("indptr", [0, 2, 2**31 - 1, 6], ValueError, "indptr"),
    "a column too large": ("indices", [0, 1, 0, 2, 0, 1], IndexError, r"in 0\.\.2, got 2"),
    "a negative column": ("indices", [0, 1, 0, -1, 0, 1], IndexError, r"in 0\.\.2, got -1"),
    "too few indices": ("indices", [0, 1, 0], ValueError, "expected 6, got 3"),
}


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_matrix_raises(fault, index):
    part, values, error, message = BROKEN[fault]
    matrix = sparse.csr_matrix(np.ones((3, 2), np.int32))
    matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
    setattr(matrix, part, np.array(values, index))
    for workers in WORKERS:
        with pytest.raises(error, match=message):
            aggregate_bins(matrix, rows=[0, 0, 0], cols=[0, 0, 0], factor=1, workers=workers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 0]}, r"rows: expected 3 values, got shape \(2,\)"),
        ({"cols": [[0, 0, 0]]}, "cols: expected 3 values"),
        ({"rows": [0, 0.5, 0]}, "rows: expected whole numbers"),
        ({"rows": [0, np.nan, 0]}, "rows: expected whole numbers"),
        ({"rows": [0, np.inf, 0]}, "rows: expected whole numbers"),
        ({"cols": ["a", "b", "c"]}, "cols: expected whole numbers"),
        ({"factor": 0}, "factor: expected at least 1, got 0"),
        ({"factor": -4}, "factor: expected at least 1, got -4"),
        ({"factor": 1.5}, "factor: expected whole numbers"),
        ({"factor": True}, "factor"),
        ({"workers": 0}, "workers: expected an integer of at least 1, got 0"),
        ({"workers": -1}, "workers.*got -1"),
        ({"workers": 1.5}, "workers.*got 1.5"),
        ({"rows": None}, "expected rows=, cols= and factor= with a matrix"),
        ({"bin_size": 8}, "expected rows=, cols= and factor= with a matrix"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"rows": [0, 0, 0], "cols": [0, 0, 0], "factor": 2} | change
    with pytest.raises(ValueError, match=message):
        aggregate_bins(np.ones((3, 2), np.int32), **arguments)


@pytest.mark.parametrize(
    "rows", [[1e300, 0, 0], [2.0**63, 0, 0], np.array([2**63 + 5, 0, 0], np.uint64)]
)
def test_a_position_beyond_int64_raises(rows):
    with pytest.raises((ValueError, OverflowError), match="rows"):
        aggregate_bins(np.ones((3, 2), np.int32), rows=rows, cols=[0, 0, 0], factor=2)


@pytest.mark.parametrize("dtype", [complex, object, "U1", np.longdouble])
def test_a_matrix_of_no_counts_raises(dtype):
    with pytest.raises((ValueError, TypeError)):
        aggregate_bins(np.ones((3, 2)).astype(dtype), rows=[0, 0, 0], cols=[0, 0, 0], factor=2)


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match="expected 2 dimensions, got 1"):
        aggregate_bins(np.ones(3), rows=[0, 0, 0], cols=[0, 0, 0], factor=2)


# --- AnnData -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def affine(slide):
    """The slide's map: affine @ (column, row, 1) is the centre of a square in pixels."""
    made = json.loads((slide / "stfast.json").read_text())
    return np.array(made["affine_array_colrow_to_pixel_xy"])


def grid(n=8, rows=None, cols=None):
    """AnnData of n × n squares of 2 µm and 5 px, reflected."""
    if rows is None:
        rows, cols = np.divmod(np.arange(n * n), n)
    names = [f"s{i}" for i in range(len(rows))]
    obs = pd.DataFrame({"in_tissue": 1, "array_row": rows, "array_col": cols}, index=names)
    adata = AnnData(sparse.csr_matrix(np.ones((len(rows), 3), np.int32)), obs=obs)
    adata.obsm["spatial"] = np.column_stack([cols * 5.0 + 3, rows * -5.0 + 100])
    factors = {"bin_size_um": 2.0, "spot_diameter_fullres": 5.0, "tissue_hires_scalef": 0.5}
    library = {"images": {}, "scalefactors": factors, "metadata": {"a": "b"}}
    adata.uns["spatial"] = {"lib": library}
    return adata


@pytest.mark.parametrize("bin_size", [2, 4, 8, 16, 30.0, 200])
def test_a_slides_bins_equal_the_oracle(squares, affine, bin_size):
    k = int(bin_size / 2)
    found = at_any_workers(lambda n: aggregate_bins(squares, bin_size, workers=n))
    rows, cols = squares.obs["array_row"], squares.obs["array_col"]
    sums, bin_rows, bin_cols = oracles.binned(squares.X, rows, cols, k)
    assert (found.X != sums).nnz == 0
    assert found.X.dtype == np.int32
    assert found.X.sum() == squares.X.sum()
    np.testing.assert_array_equal(found.obs["array_row"], bin_rows)
    np.testing.assert_array_equal(found.obs["array_col"], bin_cols)
    centre = np.stack([bin_cols, bin_rows]) * k + (k - 1) / 2
    expected = (affine[:, :2] @ centre).T + affine[:, 2]
    np.testing.assert_allclose(found.obsm["spatial"], expected, atol=1e-6, rtol=0)
    places = zip(bin_rows, bin_cols, strict=True)
    names = [f"s_{int(bin_size):03}um_{row:05}_{col:05}-1" for row, col in places]
    assert list(found.obs_names) == names
    pd.testing.assert_frame_equal(found.var, squares.var)


def test_centres_are_exact_where_squares_are_missing(squares, affine):
    keep = np.random.default_rng(0).random(squares.n_obs) < 0.3
    found = aggregate_bins(squares[keep], 8)
    centre = found.obs[["array_col", "array_row"]].to_numpy().T * 4 + 1.5
    expected = (affine[:, :2] @ centre).T + affine[:, 2]
    np.testing.assert_allclose(found.obsm["spatial"], expected, atol=1e-6, rtol=0)


def test_a_bin_is_in_tissue_if_any_square_is(squares):
    squares = squares.copy()
    squares.obs["in_tissue"] = (np.random.default_rng(0).random(squares.n_obs) < 0.05).astype(int)
    found = aggregate_bins(squares, 8)
    obs = squares.obs.assign(r=squares.obs["array_row"] // 4, c=squares.obs["array_col"] // 4)
    expected = obs.groupby(["r", "c"]).agg(tissue=("in_tissue", "max"), n=("in_tissue", "size"))
    np.testing.assert_array_equal(found.obs["in_tissue"], expected["tissue"])
    np.testing.assert_array_equal(found.obs["n_squares"], expected["n"])
    assert 0 < found.obs["in_tissue"].sum() < found.n_obs


def test_scale_factors_are_those_of_the_bins(squares):
    before = squares.uns["spatial"]["slide"]["scalefactors"].copy()
    factors = aggregate_bins(squares, 8).uns["spatial"]["slide"]["scalefactors"]
    assert factors["bin_size_um"] == 8
    assert factors["spot_diameter_fullres"] == 4 * before["spot_diameter_fullres"]
    for name in ("tissue_hires_scalef", "tissue_lowres_scalef", "microns_per_pixel"):
        assert factors[name] == before[name]
    assert squares.uns["spatial"]["slide"]["scalefactors"] == before


def test_bins_of_bins_are_the_bins(squares):
    twice = aggregate_bins(aggregate_bins(squares, 4), 16)
    once = aggregate_bins(squares, 16)
    assert_same(twice.X, once.X)
    assert list(twice.obs_names) == list(once.obs_names)
    np.testing.assert_array_equal(twice.obs["in_tissue"], once.obs["in_tissue"])
    np.testing.assert_allclose(twice.obsm["spatial"], once.obsm["spatial"], atol=1e-6)


def test_layers_are_summed_each_in_its_type(squares):
    squares = squares.copy()
    squares.layers["half"] = squares.X.astype(np.float32) * np.float32(0.5)
    found = aggregate_bins(squares, 8)
    assert found.layers["half"].dtype == np.float32
    assert (found.layers["half"] * 2 != found.X).nnz == 0


def test_what_made_the_bins_is_recorded(squares):
    record = aggregate_bins(squares, 8).uns["stfast"]
    assert record["format_version"] == 1
    assert record["version"] == stfast.__version__
    assert record["aggregate_bins"] == {"bin_size": 8, "factor": 4}


def test_a_slide_without_squares_has_no_bins():
    found = aggregate_bins(grid()[:0].copy(), 8)
    assert found.shape == (0, 3)
    assert found.obsm["spatial"].shape == (0, 2)


def test_a_single_row_of_squares_has_finite_centres():
    found = aggregate_bins(grid(rows=np.zeros(8, int), cols=np.arange(8)), 8)
    np.testing.assert_allclose(found.obsm["spatial"][:, 0], [10.5, 30.5])
    assert np.isfinite(found.obsm["spatial"]).all()


def test_a_position_that_is_not_finite_raises():
    """One NaN among the squares must not wipe out the centres of all bins."""
    adata = grid()
    adata.obsm["spatial"][5, 0] = np.nan
    with pytest.raises(ValueError, match=r"spatial.*finite"):
        aggregate_bins(adata, 8)


@pytest.mark.parametrize("bin_size", [7, 1, 0, -8, 8.5, np.nan, np.inf, "8", True])
def test_a_bin_size_that_is_no_multiple_raises(bin_size):
    with pytest.raises(ValueError, match=r"bin_size: expected a (multiple of 2|positive number)"):
        aggregate_bins(grid(), bin_size)


def test_anndata_that_lacks_something_is_told_so():
    cases = {
        "obs: expected array_row and array_col, got no array_col": lambda a: a.obs.pop("array_col"),
        r'uns\["spatial"\]: expected one library, got none': lambda a: a.uns.pop("spatial"),
        "expected 'bin_size_um'": lambda a: a.uns["spatial"]["lib"]["scalefactors"].pop(
            "bin_size_um"
        ),
    }
    for message, take_away in cases.items():
        adata = grid()
        take_away(adata)
        with pytest.raises(ValueError, match=message):
            aggregate_bins(adata, 8)


@pytest.mark.parametrize("values", [["a"] * 64, [0.5] * 64, [np.nan] * 64])
def test_array_positions_must_be_whole(values):
    adata = grid()
    adata.obs["array_row"] = values
    with pytest.raises(ValueError, match="array_row: expected whole numbers"):
        aggregate_bins(adata, 8)


def test_anndata_takes_a_bin_size_and_nothing_else():
    for wrong in ({}, {"bin_size": 8, "factor": 4}, {"rows": [0], "cols": [0], "factor": 2}):
        with pytest.raises(ValueError, match="expected bin_size=, factor= or labels="):
            aggregate_bins(grid(), **wrong)
