//! Sums per gene; what is chosen from them, a few numbers a gene, is Python's.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use stfast_core::hvg::{self, Scale};

use crate::arrays::{Matrix, with_csr};
use crate::door;

type Float64<'py> = Bound<'py, PyArray1<f64>>;

/// Sum of each row.
#[pyfunction]
pub(crate) fn row_sums<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    workers: usize,
) -> PyResult<Float64<'py>> {
    with_csr!(matrix, |csr| {
        let sums = door::run(py, workers, None, |watch| hvg::row_sums(csr, watch))?;
        Ok(sums.into_pyarray(py))
    })
}

/// Sum and summed squared deviations of each column, of values as they are,
/// times a factor a row, or with a logarithm of base `exp(log_base)` undone.
#[pyfunction]
#[pyo3(signature = (matrix, workers, *, factors=None, log_base=None))]
pub(crate) fn moments<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    workers: usize,
    factors: Option<PyReadonlyArray1<'py, f64>>,
    log_base: Option<f64>,
) -> PyResult<(Float64<'py>, Float64<'py>)> {
    let scale = match (&factors, log_base) {
        (Some(factors), _) => Scale::Rows(factors.as_slice()?),
        (None, Some(log_base)) => Scale::Expm1(log_base),
        (None, None) => Scale::Stored,
    };
    with_csr!(matrix, |csr| {
        let moments = door::run(py, workers, None, |watch| hvg::moments(csr, scale, watch))?;
        Ok((moments.sum.into_pyarray(py), moments.m2.into_pyarray(py)))
    })
}

/// Sum, sum of squares, and variance of the clipped Pearson residuals of each column.
#[pyfunction]
pub(crate) fn pearson<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    theta: f64,
    clip: f64,
    workers: usize,
) -> PyResult<(Float64<'py>, Float64<'py>, Float64<'py>)> {
    with_csr!(matrix, |csr| {
        let found = door::run(py, workers, None, |watch| {
            hvg::pearson(csr, theta, clip, watch)
        })?;
        Ok((
            found.sum.into_pyarray(py),
            found.squares.into_pyarray(py),
            found.variance.into_pyarray(py),
        ))
    })
}

/// Whether values are infinite or NaN, negative, fractional, and columns disordered.
#[pyfunction]
pub(crate) fn value_kinds(
    py: Python<'_>,
    matrix: Matrix<'_>,
    workers: usize,
) -> PyResult<(bool, bool, bool, bool)> {
    with_csr!(matrix, |csr| {
        let kinds = door::run(py, workers, None, |watch| hvg::kinds(csr, watch))?;
        Ok((
            kinds.infinite,
            kinds.negative,
            kinds.fractional,
            kinds.disordered,
        ))
    })
}
