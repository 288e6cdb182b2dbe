//! Tiles cut from images: into the caller's array, so that a memory map or the
//! pinned memory of a tensor takes them without a copy, or encoded into files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use numpy::{
    IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray4, PyReadwriteArray4,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use stfast_core::tiles::{self, Border, Container, Encoding, Filter, Options, Shards, Texts};
use stfast_core::tiles::{Report, Windows};
use stfast_core::{Result, Watch, images};

use crate::door;
use crate::error::bad_word;
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

/// Levels, and for each tile its level and its window's left and top edge, width
/// and height in that level's pixels; and the side of a tile.
#[derive(FromPyObject)]
pub(crate) struct Places<'py> {
    levels: Vec<Bound<'py, Level>>,
    source: PyReadonlyArray1<'py, u32>,
    left: PyReadonlyArray1<'py, f64>,
    top: PyReadonlyArray1<'py, f64>,
    width: PyReadonlyArray1<'py, f64>,
    height: PyReadonlyArray1<'py, f64>,
    size: Option<usize>,
}

/// A call's windows, in types that may leave the interpreter.
struct Held<'a> {
    levels: Vec<Arc<images::Level>>,
    source: &'a [u32],
    sides: [&'a [f64]; 4],
    size: Option<usize>,
}

impl Places<'_> {
    fn hold(&self) -> PyResult<Held<'_>> {
        let (left, top) = (self.left.as_slice()?, self.top.as_slice()?);
        Ok(Held {
            levels: (self.levels.iter())
                .map(|level| Arc::clone(&level.get().0))
                .collect(),
            source: self.source.as_slice()?,
            sides: [left, top, self.width.as_slice()?, self.height.as_slice()?],
            size: self.size,
        })
    }
}

impl Held<'_> {
    /// Calls a kernel with the windows, blocks of their levels found.
    fn with<T>(&self, watch: &Watch, kernel: impl FnOnce(&Windows<'_>) -> Result<T>) -> Result<T> {
        let sources = self.levels.iter().map(|level| level.blocks(watch));
        let sources: Vec<_> = sources.collect::<Result<_>>()?;
        let [left, top, width, height] = self.sides;
        kernel(&Windows {
            sources: &sources,
            source: self.source,
            left,
            top,
            width,
            height,
            size: self.size,
        })
    }
}

/// How tiles are cut, as Python says it.
#[derive(FromPyObject)]
pub(crate) struct Style {
    fill: u8,
    border: String,
    filter: String,
    lenient: bool,
}

impl Style {
    fn options<'a>(&self, cache: Option<&'a tiles::Cache>) -> PyResult<Options<'a>> {
        Ok(Options {
            fill: self.fill,
            border: match &*self.border {
                "fill" => Border::Fill,
                "edge" => Border::Edge,
                "reflect" => Border::Reflect,
                word => return Err(bad_word("border", "fill, edge or reflect", word)),
            },
            filter: filter_of(&self.filter)?,
            lenient: self.lenient,
            cache,
        })
    }
}

fn filter_of(word: &str) -> PyResult<Filter> {
    Ok(match word {
        "box" => Filter::Box,
        "bilinear" => Filter::Bilinear,
        "bicubic" => Filter::Bicubic,
        "lanczos" => Filter::Lanczos,
        _ => {
            return Err(bad_word(
                "filter",
                "box, bilinear, bicubic or lanczos",
                word,
            ));
        }
    })
}

/// Where and how tiles are written, as Python says it.
#[derive(FromPyObject)]
pub(crate) struct Output<'py> {
    container: String,
    encoding: String,
    quality: u8,
    folder: PathBuf,
    names: Strings<'py>,
    notes: Strings<'py>,
    order: PyReadonlyArray1<'py, u32>,
    per_shard: usize,
    done: PyReadonlyArray1<'py, bool>,
}

/// Bytes of texts laid end to end, and their offsets.
#[derive(FromPyObject)]
pub(crate) struct Strings<'py>(PyReadonlyArray1<'py, u8>, PyReadonlyArray1<'py, i64>);

impl Strings<'_> {
    pub(crate) fn texts(&self) -> PyResult<Texts<'_>> {
        Ok(Texts {
            bytes: self.0.as_slice()?,
            offsets: self.1.as_slice()?,
        })
    }
}

impl Output<'_> {
    fn container(&self) -> PyResult<Container> {
        Ok(match &*self.container {
            "tar" => Container::Tar,
            "zarr" => Container::Zarr,
            "folder" => Container::Folder,
            word => return Err(bad_word("container", "tar, zarr or folder", word)),
        })
    }

    fn encoding(&self) -> PyResult<Encoding> {
        let (quality, level) = (self.quality, self.quality);
        Ok(match &*self.encoding {
            "raw" => Encoding::Raw,
            "npy" => Encoding::Npy,
            "png" => Encoding::Png,
            "jpeg" => Encoding::Jpeg { quality },
            "zstd" => Encoding::Zstd { level },
            word => return Err(bad_word("encoding", "raw, npy, png, jpeg or zstd", word)),
        })
    }

    fn shards(&self) -> PyResult<Shards<'_>> {
        let shards = Shards::new(
            (self.container()?, self.encoding()?),
            &self.folder,
            [self.names.texts()?, self.notes.texts()?],
            self.order.as_slice()?,
            self.per_shard,
            self.done.as_slice()?,
        );
        shards.map_err(crate::error::to_python)
    }
}

/// Blocks touched, their pixels, pixels decoded, the valid share of each window, and
/// the tiles that damaged blocks belong to, with the fault.
type Told<'py> = (
    u64,
    u64,
    u64,
    Bound<'py, PyArray1<f32>>,
    Vec<(usize, String)>,
);

fn tell(py: Python<'_>, report: Report) -> Told<'_> {
    let valid = report.valid.into_pyarray(py);
    let bad = report.bad.into_iter().collect();
    (report.blocks, report.pixels, report.decoded, valid, bad)
}

/// Cuts tiles into `out`.
#[pyfunction]
#[pyo3(signature = (places, style, out, workers, *, cache=None, progress=None))]
pub(crate) fn extract_tiles<'py>(
    py: Python<'py>,
    places: Places<'_>,
    style: Style,
    mut out: PyReadwriteArray4<'_, u8>,
    workers: usize,
    cache: Option<&Bound<'_, Cache>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Told<'py>> {
    let held = places.hold()?;
    let options = style.options(cache.map(|cache| &*cache.get().0))?;
    let out = out.as_slice_mut()?;
    let report = door::run(py, workers, progress, |watch| {
        held.with(watch, |windows| {
            tiles::extract(windows, options, out, watch)
        })
    })?;
    Ok(tell(py, report))
}

/// Resizes square tiles (n, side, side, 3) into `out` (n, size, size, 3).
#[pyfunction]
pub(crate) fn resize_tiles(
    py: Python<'_>,
    tiles: PyReadonlyArray4<'_, u8>,
    filter: &str,
    mut out: PyReadwriteArray4<'_, u8>,
    workers: usize,
) -> PyResult<()> {
    let (filter, sides) = (filter_of(filter)?, [tiles.shape()[1], out.shape()[1]]);
    let (tiles, out) = (tiles.as_slice()?, out.as_slice_mut()?);
    door::run(py, workers, None, |watch| {
        tiles::resize(tiles, sides, filter, out, watch)
    })
}

/// The tiles in the order in which they are written.
#[pyfunction]
pub(crate) fn tile_order<'py>(
    py: Python<'py>,
    places: Places<'_>,
    workers: usize,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let held = places.hold()?;
    let order = door::run(py, workers, None, |watch| held.with(watch, tiles::order))?;
    Ok(order.into_pyarray(py))
}

/// Pixels a second that the codec decodes of the windows' blocks, measured for a moment.
#[pyfunction]
pub(crate) fn codec_rate(py: Python<'_>, places: Places<'_>, workers: usize) -> PyResult<f64> {
    let held = places.hold()?;
    door::run(py, workers, None, |watch| {
        held.with(watch, |windows| {
            tiles::codec_rate(windows, Duration::from_millis(300), watch)
        })
    })
}

/// Cuts, encodes and writes the tiles of all shards that are not done.
#[pyfunction]
#[pyo3(signature = (places, style, output, workers, *, progress=None))]
pub(crate) fn write_tiles<'py>(
    py: Python<'py>,
    places: Places<'_>,
    style: Style,
    output: Output<'_>,
    workers: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<Told<'py>> {
    let (held, options, shards) = (places.hold()?, style.options(None)?, output.shards()?);
    let report = door::run(py, workers, progress, |watch| {
        held.with(watch, |windows| {
            tiles::write(windows, options, &shards, watch)
        })
    })?;
    Ok(tell(py, report))
}
