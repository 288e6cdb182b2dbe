//! From a block's coded bytes to its samples.
//!
//! Each codec is told how many bytes it may produce, and fails rather than
//! pass that mark: a small file cannot ask for a large memory.

use std::path::Path;

use libdeflater::Decompressor;
use weezl::BitOrder;

use super::jpeg::Jpeg;
use super::{Layout, RGB};
use crate::Error;

/// How a block's bytes are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Raw,
    /// Zlib streams (TIFF 8 and 32946).
    Deflate,
    /// TIFF LZW, most significant bit first (TIFF 5).
    Lzw,
    /// Zstandard frames (TIFF 50000).
    Zstd,
    /// JPEG, possibly abbreviated with tables of its own (TIFF 7).
    Jpeg,
    /// A whole PNG file.
    Png,
}

/// What a stored block holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) width: usize,
    /// Rows that must be there.
    pub(super) height: usize,
    /// Rows that may be there: the last strip is sometimes stored whole.
    pub(super) most: usize,
    pub(super) samples: usize,
}

impl Shape {
    fn bytes(self) -> usize {
        self.width * self.height * self.samples
    }

    fn most_bytes(self) -> usize {
        self.width * self.most * self.samples
    }
}

/// What a codec found, before the file and the block are known.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) expected: String,
    pub(super) found: String,
    /// A valid stream that this version does not decode.
    pub(super) unsupported: bool,
}

impl Fault {
    pub(super) fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            found: found.into(),
            unsupported: false,
        }
    }

    pub(super) fn at(self, path: &Path, what: String) -> Error {
        let (path, expected, found) = (path.to_owned(), self.expected, self.found);
        if self.unsupported {
            return Error::Unsupported {
                path,
                what,
                expected,
                found,
            };
        }
        Error::Format {
            path,
            what,
            expected,
            found,
        }
    }
}

/// The codecs' states, made when first needed.
#[derive(Default)]
pub(super) struct Codecs {
    jpeg: Option<Jpeg>,
    deflate: Option<Decompressor>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl std::fmt::Debug for Codecs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codecs").finish_non_exhaustive()
    }
}

impl Codecs {
    /// Fills `out` with at least the rows of `shape`. JPEG and PNG give RGB
    /// whatever they hold; the others give the samples as stored.
    pub(super) fn decode(
        &mut self,
        layout: &Layout,
        shape: Shape,
        coded: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match layout.codec {
            Codec::Jpeg => {
                let jpeg = self.jpeg.get_or_insert_with(Jpeg::new);
                return jpeg.decode(coded, &layout.tables, layout.colour, shape, out);
            }
            Codec::Png => return png(coded, shape, out),
            _ => {}
        }
        out.resize(shape.most_bytes(), 0);
        let got = match layout.codec {
            Codec::Deflate => self.deflate(coded, out)?,
            Codec::Zstd => self.zstd(coded, out)?,
            Codec::Lzw => lzw(coded, out)?,
            _ => raw(coded, out),
        };
        if got < shape.bytes() {
            let expected = format!("{} bytes", shape.bytes());
            return Err(Fault::new(expected, got.to_string()));
        }
        out.truncate(got);
        Ok(())
    }

    fn deflate(&mut self, coded: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
        let state = self.deflate.get_or_insert_with(Decompressor::new);
        (state.zlib_decompress(coded, out)).map_err(|e| {
            Fault::new(
                format!("at most {} bytes of deflate", out.len()),
                e.to_string(),
            )
        })
    }

    fn zstd(&mut self, coded: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
        let fault = |e: std::io::Error| {
            Fault::new(
                format!("at most {} bytes of zstd", out.len()),
                e.to_string(),
            )
        };
        if self.zstd.is_none() {
            self.zstd = Some(zstd::bulk::Decompressor::new().map_err(fault)?);
        }
        match &mut self.zstd {
            Some(state) => (state.decompress_to_buffer(coded, out))
                .map_err(|e| Fault::new("a zstd frame", e.to_string())),
            None => Ok(0),
        }
    }
}

fn raw(coded: &[u8], out: &mut [u8]) -> usize {
    let n = coded.len().min(out.len());
    out[..n].copy_from_slice(&coded[..n]);
    n
}

fn lzw(coded: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
    let mut state = weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
    let (mut read, mut written) = (0, 0);
    while written < out.len() {
        let step = state.decode_bytes(&coded[read..], &mut out[written..]);
        read += step.consumed_in;
        written += step.consumed_out;
        match step.status {
            Ok(weezl::LzwStatus::Ok) => {}
            Ok(weezl::LzwStatus::Done | weezl::LzwStatus::NoProgress) => break,
            Err(e) => return Err(Fault::new("a TIFF LZW stream", e.to_string())),
        }
    }
    Ok(written)
}

fn png(coded: &[u8], shape: Shape, out: &mut Vec<u8>) -> Result<(), Fault> {
    let fault = |e: png::DecodingError| Fault::new("a PNG image", e.to_string());
    let limits = png::Limits {
        bytes: shape.width.saturating_mul(shape.height).saturating_mul(8) + (1 << 20),
    };
    let mut decoder = png::Decoder::new_with_limits(std::io::Cursor::new(coded), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(fault)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if (width, height) != (shape.width, shape.height) {
        let expected = format!("{} × {} pixels", shape.width, shape.height);
        return Err(Fault::new(expected, format!("{width} × {height}")));
    }
    let samples = reader.output_color_type().0.samples();
    let mut stored = vec![0; width * height * samples];
    reader.next_frame(&mut stored).map_err(fault)?;
    out.resize(width * height * RGB, 0);
    for (rgb, pixel) in out.chunks_exact_mut(RGB).zip(stored.chunks_exact(samples)) {
        match pixel {
            [grey] | [grey, _] => rgb.fill(*grey),
            _ => rgb.copy_from_slice(&pixel[..RGB]),
        }
    }
    Ok(())
}
