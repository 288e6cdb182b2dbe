//! The order of an epoch, and gene rows.

use numpy::{PyReadonlyArray1, PyReadwriteArray1, PyReadwriteArray2};
use pyo3::prelude::*;
use stfast_core::loader;

use crate::arrays::{Indices, Matrix, Values};
use crate::door;
use crate::error::bad_word;

/// Fills `out` with the items at positions `start..` of an epoch's order.
#[pyfunction]
pub(crate) fn epoch_order(
    py: Python<'_>,
    n: u64,
    seed: u64,
    epoch: u64,
    start: u64,
    mut out: PyReadwriteArray1<'_, i64>,
    workers: usize,
) -> PyResult<()> {
    let out = out.as_slice_mut()?;
    door::run(py, workers, None, |_| {
        loader::order(n, seed, epoch, start, out)
    })
}

/// Writes the chosen rows of a float32 matrix densely into `out`.
#[pyfunction]
pub(crate) fn gather_rows(
    py: Python<'_>,
    matrix: Matrix<'_>,
    rows: PyReadonlyArray1<'_, i64>,
    mut out: PyReadwriteArray2<'_, f32>,
    workers: usize,
) -> PyResult<()> {
    let Matrix(Values::F32(data), Indices::I64(indices), Indices::I64(indptr), n_cols) = &matrix
    else {
        return Err(bad_word("matrix", "float32 with int64 indices", "another"));
    };
    let csr = stfast_core::csr::Csr {
        data: data.as_slice()?,
        indices: indices.as_slice()?,
        indptr: indptr.as_slice()?,
        n_cols: *n_cols,
    };
    let (rows, out) = (rows.as_slice()?, out.as_slice_mut()?);
    door::run(py, workers, None, |watch| {
        loader::gather(csr, rows, out, watch)
    })
}
