//! Encoded tiles of many slides into the shards of a dataset.

use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use stfast_core::dataset::{self, Shard, Tiles};

use crate::door;
use crate::tiles::Strings;

/// Where the encoded tiles of consecutive rows lie, as Python says it.
#[derive(FromPyObject)]
pub(crate) struct Coded<'py> {
    sources: Vec<PathBuf>,
    source: PyReadonlyArray1<'py, u32>,
    offset: PyReadonlyArray1<'py, u64>,
    length: PyReadonlyArray1<'py, u32>,
    notes: Strings<'py>,
    extension: String,
    first: u64,
}

/// Copies encoded tiles into shards, each a file and its range of the tiles; where each
/// tile's bytes start there.
#[pyfunction]
#[pyo3(signature = (tiles, shards, workers, *, progress=None))]
pub(crate) fn copy_tiles<'py>(
    py: Python<'py>,
    tiles: Coded<'_>,
    shards: Vec<(PathBuf, usize, usize)>,
    workers: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<u64>>> {
    let coded = Tiles {
        sources: &tiles.sources,
        source: tiles.source.as_slice()?,
        offset: tiles.offset.as_slice()?,
        length: tiles.length.as_slice()?,
        notes: tiles.notes.texts()?,
        extension: &tiles.extension,
        first: tiles.first,
    };
    let wanted: Vec<Shard<'_>> = (shards.iter())
        .map(|&(ref path, start, end)| Shard { path, start, end })
        .collect();
    let starts = door::run(py, workers, progress, |w| dataset::copy(coded, &wanted, w))?;
    Ok(starts.into_pyarray(py))
}
