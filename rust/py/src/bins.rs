//! Squares to bins. How many counts come out is not known beforehand, so vectors are
//! moved out and become numpy's own.

use numpy::{
    Element, IntoPyArray, PyArray1, PyReadonlyArray1, PyReadwriteArray1, PyReadwriteArray2,
};
use pyo3::prelude::*;
use stfast_core::bins::{self, Stored, Sums};

use crate::arrays::{Matrix, with_csr, with_dtype};
use crate::door;
use crate::h5::Chunked;

type Int64<'py> = Bound<'py, PyArray1<i64>>;
type Arrays<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray1<i32>>, Int64<'py>);

fn arrays<T: Element>(py: Python<'_>, sums: Sums<T>) -> Arrays<'_> {
    (
        sums.data.into_pyarray(py).into_any(),
        sums.indices.into_pyarray(py),
        sums.indptr.into_pyarray(py),
    )
}

/// Gives each square its bin: rows and columns of the bins, bin of each square.
#[pyfunction]
pub(crate) fn assign_bins<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray1<'py, i64>,
    cols: PyReadonlyArray1<'py, i64>,
    factor: i64,
    workers: usize,
) -> PyResult<(Int64<'py>, Int64<'py>, Int64<'py>)> {
    let (rows, cols) = (rows.as_slice()?, cols.as_slice()?);
    let bins = door::run(py, workers, None, |_| bins::assign(rows, cols, factor))?;
    Ok((
        bins.rows.into_pyarray(py),
        bins.cols.into_pyarray(py),
        bins.bin_of_square.into_pyarray(py),
    ))
}

/// Sums the rows of a matrix that share a group: data, indices, indptr.
#[pyfunction]
#[pyo3(signature = (matrix, group_of_row, n_groups, workers, progress=None))]
pub(crate) fn sum_groups<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    group_of_row: PyReadonlyArray1<'py, i64>,
    n_groups: usize,
    workers: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<Arrays<'py>> {
    let group_of_row = group_of_row.as_slice()?;
    with_csr!(matrix, |csr| {
        let sums = door::run(py, workers, progress, |watch| {
            bins::sum_groups(csr, group_of_row, n_groups, watch)
        })?;
        Ok(arrays(py, sums))
    })
}

/// Data, indices and indptr of a CSR matrix in a file, its number of columns, whether
/// negative values are faults, and how many values are held at a time.
#[derive(FromPyObject)]
pub(crate) struct StoredMatrix<'py>(
    Bound<'py, Chunked>,
    Bound<'py, Chunked>,
    PyReadonlyArray1<'py, i64>,
    usize,
    bool,
    usize,
);

impl StoredMatrix<'_> {
    fn borrow(&self) -> PyResult<Stored<'_>> {
        let Self(data, indices, indptr, n_cols, counts, stretch) = self;
        Ok(Stored {
            data: &data.get().0,
            indices: &indices.get().0,
            indptr: indptr.as_slice()?,
            n_cols: *n_cols,
            counts: *counts,
            stretch: *stretch,
        })
    }
}

/// Sums the rows of a stored matrix that share a group, as int32, int64 or float64.
#[pyfunction]
#[pyo3(signature = (matrix, group_of_row, n_groups, dtype, workers, progress=None))]
pub(crate) fn sum_stored<'py>(
    py: Python<'py>,
    matrix: StoredMatrix<'py>,
    group_of_row: PyReadonlyArray1<'py, i64>,
    n_groups: usize,
    dtype: &str,
    workers: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<Arrays<'py>> {
    let groups = group_of_row.as_slice()?;
    let stored = matrix.borrow()?;
    with_dtype!(dtype, T => {
        let sum = |watch: &_| bins::sum_stored::<T>(stored, groups, n_groups, watch);
        Ok(arrays(py, door::run(py, workers, progress, sum)?))
    })
}

/// What [`bins::SlideBins`] holds, in its order.
type SlideBins<'py> = (
    Int64<'py>,
    Int64<'py>,
    Bound<'py, PyArray1<bool>>,
    Int64<'py>,
    Int64<'py>,
    usize,
    usize,
);

/// Finds squares in their slide's grid, and groups them into its bins.
#[pyfunction]
pub(crate) fn group_squares<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray1<'py, i32>,
    cols: PyReadonlyArray1<'py, i32>,
    mut places: PyReadwriteArray2<'py, u8>,
    factor: usize,
    all: bool,
) -> PyResult<SlideBins<'py>> {
    let (rows, cols) = (rows.as_slice()?, cols.as_slice()?);
    let width = places.as_array().ncols();
    let places = (places.as_slice_mut()?, width);
    let bins = door::run(py, 1, None, |_| {
        bins::group_squares(rows, cols, places, factor, all)
    })?;
    Ok((
        bins.rows.into_pyarray(py),
        bins.cols.into_pyarray(py),
        bins.in_tissue.into_pyarray(py),
        bins.n_squares.into_pyarray(py),
        bins.groups.into_pyarray(py),
        bins.unplaced,
        bins.again,
    ))
}

/// Reads row and column from the names of squares; says whether all of them had some.
#[pyfunction]
pub(crate) fn parse_squares(
    py: Python<'_>,
    texts: PyReadonlyArray1<'_, u8>,
    width: usize,
    size: u32,
    mut rows: PyReadwriteArray1<'_, i32>,
    mut cols: PyReadwriteArray1<'_, i32>,
    workers: usize,
) -> PyResult<bool> {
    let texts = texts.as_slice()?;
    let (rows, cols) = (rows.as_slice_mut()?, cols.as_slice_mut()?);
    door::run(py, workers, None, |_| {
        Ok(bins::squares::parse(texts, width, size, rows, cols))
    })
}
