//! Numbers in text. Python says which type to parse into, and tries the next one where a
//! number does not fit.

use std::path::PathBuf;

use numpy::{Element, IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use stfast_core::text::{self, Lines, Table, Triplets};

use crate::arrays::{Matrix, with_csr, with_dtype};
use crate::door;

/// Data, indices and indptr.
type Arrays<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i64>>,
);
type Bytes<'py> = Bound<'py, PyBytes>;

fn arrays<'py, T: Element>(
    py: Python<'py>,
    (data, indices, indptr): (Vec<T>, Vec<i32>, Vec<i64>),
) -> Arrays<'py> {
    (
        data.into_pyarray(py).into_any(),
        indices.into_pyarray(py),
        indptr.into_pyarray(py),
    )
}

/// Reads matrix-market triplets turned: a CSR row is a column of the file.
#[pyfunction]
#[pyo3(signature = (path, dtype, workers, progress=None))]
pub(crate) fn read_mtx<'py>(
    py: Python<'py>,
    path: PathBuf,
    dtype: &str,
    workers: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Arrays<'py>, usize)> {
    with_dtype!(dtype, T => {
        let read = |watch: &_| text::read_mtx::<T>(&path, watch);
        let Triplets { data, indices, indptr, n_cols } = door::run(py, workers, progress, read)?;
        Ok((arrays(py, (data, indices, indptr)), n_cols))
    })
}

/// Reads a table with a name before each row: its first line, names, values but zeros.
#[pyfunction]
#[pyo3(signature = (path, separator, n_cols, dtype, workers, progress=None))]
pub(crate) fn read_table<'py>(
    py: Python<'py>,
    path: PathBuf,
    separator: u8,
    n_cols: usize,
    dtype: &str,
    workers: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Bytes<'py>, Bytes<'py>, Arrays<'py>)> {
    with_dtype!(dtype, T => {
        let read = |watch: &_| text::read_table::<T>(&path, separator, n_cols, watch);
        let Table { header, names, data, indices, indptr } =
            door::run(py, workers, progress, read)?;
        let (header, names) = (PyBytes::new(py, &header), PyBytes::new(py, &names));
        Ok((header, names, arrays(py, (data, indices, indptr))))
    })
}

/// Writes a matrix as a table with all of its zeros.
#[pyfunction]
#[pyo3(signature = (path, header, names, separator, matrix, workers, progress=None))]
#[expect(clippy::too_many_arguments, reason = "each is a part of the file")]
pub(crate) fn write_table(
    py: Python<'_>,
    path: PathBuf,
    header: &str,
    names: Vec<String>,
    separator: u8,
    matrix: Matrix<'_>,
    workers: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let names = &names[..];
    let lines = Lines {
        header,
        names,
        separator,
    };
    with_csr!(matrix, |csr| {
        let write = |watch: &_| text::write_table(&path, lines, csr, watch);
        door::run(py, workers, progress, write)
    })
}
