//! Chunked HDF5 datasets, from the table of chunks that Python read.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;
use stfast_core::h5::{self, Kind, Layout, Number, Target};

use crate::door;
use crate::error::{bad_word, to_python};

/// A dataset whose chunks can be read.
#[pyclass(frozen, module = "stfast._core")]
pub(crate) struct Chunked(pub(crate) Arc<h5::Dataset>);

/// The attributes that the header object must have.
#[derive(FromPyObject)]
struct Header<'py> {
    name: String,
    shape: Vec<usize>,
    chunk: Vec<usize>,
    kind: String,
    size: usize,
    big_endian: bool,
    shuffle: Option<u32>,
    deflate: Option<u32>,
    offsets: PyReadonlyArray1<'py, u64>,
    lengths: PyReadonlyArray1<'py, u64>,
    masks: PyReadonlyArray1<'py, u32>,
    places: PyReadonlyArray1<'py, u64>,
}

#[pymethods]
impl Chunked {
    #[new]
    fn new(path: PathBuf, header: &Bound<'_, PyAny>) -> PyResult<Self> {
        let layout = header.extract::<Header<'_>>()?.layout()?;
        let dataset = h5::Dataset::open(&path, layout).map_err(to_python)?;
        Ok(Self(Arc::new(dataset)))
    }
}

impl Header<'_> {
    fn layout(self) -> PyResult<Layout> {
        Ok(Layout {
            name: self.name,
            shape: self.shape,
            chunk: self.chunk,
            number: Number {
                kind: kind(&self.kind)?,
                size: self.size,
                big_endian: self.big_endian,
            },
            shuffle: self.shuffle,
            deflate: self.deflate,
            offsets: self.offsets.as_array().to_vec(),
            lengths: self.lengths.as_array().to_vec(),
            masks: self.masks.as_array().to_vec(),
            places: self.places.as_array().to_vec(),
        })
    }
}

fn kind(word: &str) -> PyResult<Kind> {
    Ok(match word {
        "u" => Kind::Unsigned,
        "i" => Kind::Signed,
        "f" => Kind::Float,
        "S" => Kind::Text,
        _ => return Err(bad_word("kind", "u, i, f or S", word)),
    })
}

fn target(word: &str) -> PyResult<Target> {
    Ok(match word {
        "same" => Target::Same,
        "signed" => Target::Integer { signed: true },
        "unsigned" => Target::Integer { signed: false },
        "double" => Target::Double,
        _ => {
            let expected = "same, signed, unsigned or double";
            return Err(bad_word("target", expected, word));
        }
    })
}

/// The bits of an array's elements, whatever they mean.
#[derive(FromPyObject)]
pub(crate) enum Out<'py> {
    One(PyReadwriteArray1<'py, u8>),
    Two(PyReadwriteArray1<'py, u16>),
    Four(PyReadwriteArray1<'py, u32>),
    Eight(PyReadwriteArray1<'py, u64>),
}

/// Fills `out` with the values from `start` on along the first axis.
#[pyfunction]
pub(crate) fn read_chunks(
    py: Python<'_>,
    dataset: &Bound<'_, Chunked>,
    start: usize,
    target: (String, Option<u64>),
    out: Out<'_>,
    workers: usize,
) -> PyResult<()> {
    let target = (self::target(&target.0)?, target.1);
    let dataset = &*dataset.get().0;
    macro_rules! fill {
        ($out:ident) => {{
            let mut out = $out;
            let out = out.as_slice_mut()?;
            door::run(py, workers, None, |watch| {
                dataset.read(start, target, out, watch)
            })
        }};
    }
    match out {
        Out::One(out) => fill!(out),
        Out::Two(out) => fill!(out),
        Out::Four(out) => fill!(out),
        Out::Eight(out) => fill!(out),
    }
}
