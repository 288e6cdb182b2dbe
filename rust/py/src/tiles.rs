//! Tiles cut from images.

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

/// Which level each tile is cut from, and its window's left and top edge.
#[derive(FromPyObject)]
pub(crate) struct Places<'py>(
    PyReadonlyArray1<'py, u32>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
);

/// Cuts tiles into `out`: blocks touched, their pixels, pixels decoded.
#[pyfunction]
#[pyo3(signature = (levels, spans, places, out, fill, workers, *, cache=None, progress=None))]
#[expect(clippy::too_many_arguments, reason = "one call, one table of windows")]
pub(crate) fn extract_tiles(
    py: Python<'_>,
    levels: Vec<Bound<'_, Level>>,
    spans: Vec<[f64; 2]>,
    places: Places<'_>,
    mut out: PyReadwriteArray4<'_, u8>,
    fill: u8,
    workers: usize,
    cache: Option<&Bound<'_, Cache>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64, u64)> {
    let sources: Vec<Source<'_>> = (levels.iter().zip(spans))
        .map(|(level, span)| Source {
            level: &level.get().0,
            span,
        })
        .collect();
    let Places(source, left, top) = &places;
    let size = out.as_array().shape()[1];
    let (source, left, top) = (source.as_slice()?, left.as_slice()?, top.as_slice()?);
    let windows = Windows {
        sources: &sources,
        source,
        left,
        top,
        size,
    };
    let (out, cache) = (out.as_slice_mut()?, cache.map(|cache| &*cache.get().0));
    let stats = door::run(py, workers, progress, |watch| {
        tiles::extract(&windows, fill, cache, out, watch)
    })?;
    Ok((stats.blocks, stats.pixels, stats.decoded))
}
