//! The order of an epoch, encoded tiles and gene rows.

use std::path::PathBuf;

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray4};
use numpy::{PyReadwriteArray1, PyReadwriteArray2, PyReadwriteArray4};
use pyo3::prelude::*;
use stfast_core::loader::{self, Coded};

use crate::arrays::{Indices, Matrix, Values};
use crate::door;
use crate::error::bad_word;

/// The files of a dataset's shards.
#[pyclass(frozen, module = "stfast._core")]
pub(crate) struct TileShards(loader::Shards);

#[pymethods]
impl TileShards {
    #[new]
    fn new(paths: Vec<PathBuf>) -> Self {
        Self(loader::Shards::new(paths))
    }
}

/// Where encoded tiles lie: shard, offset, length.
#[derive(FromPyObject)]
pub(crate) struct Where<'py>(
    PyReadonlyArray1<'py, u32>,
    PyReadonlyArray1<'py, u64>,
    PyReadonlyArray1<'py, u32>,
);

impl Where<'_> {
    fn coded(&self) -> PyResult<Coded<'_>> {
        Ok(Coded {
            shard: self.0.as_slice()?,
            offset: self.1.as_slice()?,
            length: self.2.as_slice()?,
        })
    }
}

/// Replaces each position of an epoch's order of `0..n` by the item that stands there.
#[pyfunction]
pub(crate) fn epoch_order(
    py: Python<'_>,
    n: u64,
    seed: u64,
    epoch: u64,
    mut positions: PyReadwriteArray1<'_, i64>,
    workers: usize,
) -> PyResult<()> {
    let positions = positions.as_slice_mut()?;
    door::run(py, workers, None, |_| {
        loader::order(n, seed, epoch, positions)
    })
}

/// Decodes tiles into `out`; those that fail, where `lenient`, with what is wrong.
#[pyfunction]
#[pyo3(signature = (shards, tiles, out, workers, *, lenient, progress = None))]
pub(crate) fn decode_tiles(
    py: Python<'_>,
    shards: &Bound<'_, TileShards>,
    tiles: Where<'_>,
    mut out: PyReadwriteArray4<'_, u8>,
    workers: usize,
    lenient: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<(usize, String)>> {
    let size = out.as_array().shape()[1];
    let (shards, tiles, out) = (&shards.get().0, tiles.coded()?, out.as_slice_mut()?);
    door::run(py, workers, progress, |watch| {
        loader::decode(shards, tiles, size, lenient, out, watch)
    })
}

/// Copies encoded tiles, end to end, into `out`.
#[pyfunction]
pub(crate) fn read_tiles(
    py: Python<'_>,
    shards: &Bound<'_, TileShards>,
    tiles: Where<'_>,
    mut out: PyReadwriteArray1<'_, u8>,
    workers: usize,
) -> PyResult<()> {
    let (shards, tiles, out) = (&shards.get().0, tiles.coded()?, out.as_slice_mut()?);
    door::run(py, workers, None, |watch| {
        loader::read(shards, tiles, out, watch)
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

/// A dense matrix whose rows can be gathered, and where to.
#[derive(FromPyObject)]
pub(crate) enum Dense<'py> {
    U8(PyReadonlyArray2<'py, u8>, PyReadwriteArray2<'py, u8>),
    F32(PyReadonlyArray2<'py, f32>, PyReadwriteArray2<'py, f32>),
}

/// Copies the chosen rows of a dense matrix into another.
#[pyfunction]
pub(crate) fn gather_dense(
    py: Python<'_>,
    from_to: Dense<'_>,
    rows: PyReadonlyArray1<'_, i64>,
    workers: usize,
) -> PyResult<()> {
    let rows = rows.as_slice()?;
    macro_rules! gather {
        ($matrix:expr, $out:expr) => {{
            let n_cols = $matrix.as_array().shape()[1];
            let (matrix, out) = ($matrix.as_slice()?, $out.as_slice_mut()?);
            door::run(py, workers, None, |watch| {
                loader::gather_dense(matrix, n_cols, rows, out, watch)
            })
        }};
    }
    match from_to {
        Dense::U8(matrix, mut out) => gather!(matrix, out),
        Dense::F32(matrix, mut out) => gather!(matrix, out),
    }
}

/// What each channel's values become, and where to: the bits of values of any type.
#[derive(FromPyObject)]
pub(crate) enum Lookup<'py> {
    U8(PyReadonlyArray2<'py, u8>, PyReadwriteArray1<'py, u8>),
    U16(PyReadonlyArray2<'py, u16>, PyReadwriteArray1<'py, u16>),
    U32(PyReadonlyArray2<'py, u32>, PyReadwriteArray1<'py, u32>),
    U64(PyReadonlyArray2<'py, u64>, PyReadwriteArray1<'py, u64>),
}

/// Turns tiles, and replaces their values by a table's.
#[pyfunction]
pub(crate) fn look_up_tiles(
    py: Python<'_>,
    tiles: PyReadonlyArray4<'_, u8>,
    turns: PyReadonlyArray1<'_, u8>,
    lookup: Lookup<'_>,
    workers: usize,
) -> PyResult<()> {
    let size = tiles.as_array().shape()[1];
    let (tiles, turns) = (tiles.as_slice()?, turns.as_slice()?);
    macro_rules! look_up {
        ($table:expr, $out:expr) => {{
            let (table, out) = (table($table.as_slice()?)?, $out.as_slice_mut()?);
            door::run(py, workers, None, |watch| {
                loader::look_up(tiles, size, turns, &table, out, watch)
            })
        }};
    }
    match lookup {
        Lookup::U8(t, mut out) => look_up!(t, out),
        Lookup::U16(t, mut out) => look_up!(t, out),
        Lookup::U32(t, mut out) => look_up!(t, out),
        Lookup::U64(t, mut out) => look_up!(t, out),
    }
}

fn table<T: Copy>(values: &[T]) -> PyResult<loader::Table<T>> {
    let channel = |c: usize| values.get(c * 256..)?.first_chunk().copied();
    match [channel(0), channel(1), channel(2)] {
        [Some(red), Some(green), Some(blue)] => Ok([red, green, blue]),
        _ => Err(bad_word("table", "3 × 256 values", "fewer")),
    }
}

/// Numbers as the files of gene rows hold them.
#[derive(FromPyObject)]
pub(crate) enum Numbers<'py> {
    U8(PyReadonlyArray1<'py, u8>),
    U16(PyReadonlyArray1<'py, u16>),
    U32(PyReadonlyArray1<'py, u32>),
    I32(PyReadonlyArray1<'py, i32>),
    I64(PyReadonlyArray1<'py, i64>),
    F32(PyReadonlyArray1<'py, f32>),
}

macro_rules! with_numbers {
    ($numbers:expr, |$slice:ident| $body:expr) => {
        match &$numbers {
            Numbers::U8(a) => {
                let $slice = a.as_slice()?;
                $body
            }
            Numbers::U16(a) => {
                let $slice = a.as_slice()?;
                $body
            }
            Numbers::U32(a) => {
                let $slice = a.as_slice()?;
                $body
            }
            Numbers::I32(a) => {
                let $slice = a.as_slice()?;
                $body
            }
            Numbers::I64(a) => {
                let $slice = a.as_slice()?;
                $body
            }
            Numbers::F32(a) => {
                let $slice = a.as_slice()?;
                $body
            }
        }
    };
}

/// Copies the chosen rows of a sparse matrix (indptr, indices, values) end to end.
#[pyfunction]
pub(crate) fn gather_sparse(
    py: Python<'_>,
    matrix: (PyReadonlyArray1<'_, i64>, Numbers<'_>, Numbers<'_>),
    rows: PyReadonlyArray1<'_, i64>,
    ends: PyReadonlyArray1<'_, i64>,
    mut out: (PyReadwriteArray1<'_, i32>, PyReadwriteArray1<'_, f32>),
    workers: usize,
) -> PyResult<()> {
    let (indptr, rows, ends) = (matrix.0.as_slice()?, rows.as_slice()?, ends.as_slice()?);
    let out = (out.0.as_slice_mut()?, out.1.as_slice_mut()?);
    with_numbers!(matrix.1, |columns| with_numbers!(matrix.2, |stored| {
        door::run(py, workers, None, |watch| {
            loader::gather_sparse((indptr, columns, stored), rows, ends, out, watch)
        })
    }))
}
