//! Segmented cells per spot: a file and circles in, a table of counts out.

use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use stfast_core::cells::{self, By, Spots};

use crate::door;
use crate::error::bad_word;

/// Names of the classes; classes × spots; cells, those away from all spots, and
/// features that are no cells.
type Counted<'py> = (Vec<String>, Bound<'py, PyArray1<f64>>, [u64; 3]);

/// Counts the cells of a GeoJSON file in each spot.
#[pyfunction]
#[pyo3(signature = (path, property, spots, by, progress=None))]
pub(crate) fn count_cells<'py>(
    py: Python<'py>,
    path: PathBuf,
    property: &str,
    spots: (PyReadonlyArray1<'py, f64>, PyReadonlyArray1<'py, f64>),
    by: &str,
    progress: Option<Py<PyAny>>,
) -> PyResult<Counted<'py>> {
    let (xy, radius) = (spots.0.as_slice()?, spots.1.as_slice()?);
    let by = match by {
        "centroid" => By::Centroid,
        "area" => By::Area,
        word => return Err(bad_word("by", "centroid or area", word)),
    };
    let found = door::run(py, 1, progress, |watch| {
        cells::count(&path, property, Spots { xy, radius }, by, watch)
    })?;
    let told = [found.cells, found.away, found.skipped];
    Ok((found.classes, found.values.into_pyarray(py), told))
}
