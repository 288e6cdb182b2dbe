//! Squares to bins. How many counts come out is not known beforehand, so vectors are
//! moved out and become numpy's own.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use stfast_core::bins;

use crate::arrays::{Matrix, with_csr};
use crate::door;

type Int64<'py> = Bound<'py, PyArray1<i64>>;

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
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyArray1<i32>>, Int64<'py>)> {
    let group_of_row = group_of_row.as_slice()?;
    with_csr!(matrix, |csr| {
        let sums = door::run(py, workers, progress, |watch| {
            bins::sum_groups(csr, group_of_row, n_groups, watch)
        })?;
        Ok((
            sums.data.into_pyarray(py).into_any(),
            sums.indices.into_pyarray(py),
            sums.indptr.into_pyarray(py),
        ))
    })
}
