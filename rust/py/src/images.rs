//! An image's level, from the header that Python read.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use stfast_core::images::{self, Codec, Colour, Layout, Pick};

use crate::door;
use crate::error::{bad_word, to_python};

/// A level of an image whose blocks can be decoded.
#[pyclass(frozen, module = "stfast._core")]
pub(crate) struct Level(pub(crate) Arc<images::Level>);

/// The attributes that the header object must have.
#[derive(FromPyObject)]
struct Header<'py> {
    width: usize,
    height: usize,
    block_width: usize,
    block_height: usize,
    padded: bool,
    samples: usize,
    planar: bool,
    bits: usize,
    big_endian: bool,
    codec: String,
    differenced: bool,
    colour: String,
    chroma: [u8; 2],
    pick: Option<Pick>,
    palette: Vec<u8>,
    tables: Vec<u8>,
    offsets: PyReadonlyArray1<'py, u64>,
    lengths: PyReadonlyArray1<'py, u64>,
}

#[pymethods]
impl Level {
    #[new]
    fn new(path: PathBuf, header: &Bound<'_, PyAny>) -> PyResult<Self> {
        let layout = header.extract::<Header<'_>>()?.layout()?;
        let level = images::Level::open(&path, layout).map_err(to_python)?;
        Ok(Self(Arc::new(level)))
    }

    /// How its blocks are reached, in a word, and their width and height.
    fn access(&self, py: Python<'_>, workers: usize) -> PyResult<(&'static str, usize, usize)> {
        door::run(py, workers, None, |watch| {
            Ok(self.0.blocks(watch)?.describe())
        })
    }
}

impl Header<'_> {
    fn layout(self) -> PyResult<Layout> {
        Ok(Layout {
            width: self.width,
            height: self.height,
            block_width: self.block_width,
            block_height: self.block_height,
            padded: self.padded,
            samples: self.samples,
            planar: self.planar,
            bits: self.bits,
            big_endian: self.big_endian,
            codec: codec(&self.codec)?,
            differenced: self.differenced,
            colour: colour(&self.colour, self.chroma)?,
            pick: self.pick,
            palette: self.palette,
            tables: self.tables,
            offsets: self.offsets.as_array().to_vec(),
            lengths: self.lengths.as_array().to_vec(),
        })
    }
}

fn codec(word: &str) -> PyResult<Codec> {
    Ok(match word {
        "raw" => Codec::Raw,
        "deflate" => Codec::Deflate,
        "lzw" => Codec::Lzw,
        "zstd" => Codec::Zstd,
        "packbits" => Codec::PackBits,
        "jpeg" => Codec::Jpeg,
        "jpeg-scan" => Codec::JpegScan,
        "jpeg2000" => Codec::Jp2k,
        "webp" => Codec::WebP,
        "png" => Codec::Png,
        _ => return Err(bad_word("codec", "one that Rust decodes", word)),
    })
}

fn colour(word: &str, [across, down]: [u8; 2]) -> PyResult<Colour> {
    Ok(match word {
        "grey" => Colour::Grey,
        "grey-inverted" => Colour::GreyInverted,
        "rgb" => Colour::Rgb,
        "palette" => Colour::Palette,
        "cmyk" => Colour::Cmyk { inverted: false },
        "ycbcr" => Colour::YCbCr { across, down },
        "stream" => Colour::Stream,
        _ => {
            let words = "one that Rust knows";
            return Err(bad_word("colour", words, word));
        }
    })
}
