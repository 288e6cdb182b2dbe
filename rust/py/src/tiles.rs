//! Tiles cut from images: the caller's array is filled, so that a memory map or the
//! pinned memory of a tensor takes them without a copy.

use std::sync::Arc;

use numpy::{PyReadonlyArray1, PyReadwriteArray4};
use pyo3::prelude::*;
use stfast_core::tiles::{self, Source, Windows};

use crate::door;
use crate::images::Level;

/// Decoded blocks kept between calls.
#[pyclass(frozen, module = "stfast._core")]
pub(crate) struct Cache(Arc<tiles::Cache>);

#[pymethods]
impl Cache {
    #[new]
    fn new(capacity: u64) -> Self {
        Self(Arc::new(tiles::Cache::new(capacity)))
    }
}

/// Levels, width and height of a window in each, and for each tile its level and
/// its window's left and top edge.
#[derive(FromPyObject)]
pub(crate) struct Places<'py>(
    Vec<Bound<'py, Level>>,
    Vec<[f64; 2]>,
    PyReadonlyArray1<'py, u32>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
);

/// Cuts tiles into `out`: blocks touched, their pixels, pixels decoded.
#[pyfunction]
#[pyo3(signature = (places, out, fill, workers, *, cache=None, progress=None))]
pub(crate) fn extract_tiles(
    py: Python<'_>,
    places: Places<'_>,
    mut out: PyReadwriteArray4<'_, u8>,
    fill: u8,
    workers: usize,
    cache: Option<&Bound<'_, Cache>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64, u64)> {
    let Places(levels, spans, source, left, top) = &places;
    let pairs = levels.iter().map(|level| &*level.get().0).zip(spans);
    let sources: Vec<_> = pairs.map(|(level, &span)| Source { level, span }).collect();
    let size = out.as_array().shape()[1];
    let windows = Windows {
        sources: &sources,
        source: source.as_slice()?,
        left: left.as_slice()?,
        top: top.as_slice()?,
        size,
    };
    let (out, cache) = (out.as_slice_mut()?, cache.map(|cache| &*cache.get().0));
    let cut = |watch: &_| tiles::extract(&windows, fill, cache, out, watch);
    let stats = door::run(py, workers, progress, cut)?;
    Ok((stats.blocks, stats.pixels, stats.decoded))
}
