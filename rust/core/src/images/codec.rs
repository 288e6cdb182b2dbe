//! From a block's coded bytes to its samples.
//!
//! Each codec is told how many bytes it may produce, and fails rather than
//! pass that mark: a small file cannot ask for a large memory. Codecs of bytes
//! give the samples as stored; codecs of pictures say what theirs are.

use std::path::Path;

use super::bytes::{Lzw, PackBits, read_full};
use super::{Colour, Layout, bands, jp2k, jpeg, png, webp};
use crate::Error;
use libdeflater::Decompressor;

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
    /// Runs of bytes (TIFF 32773).
    PackBits,
    /// JPEG, possibly abbreviated with tables of its own (TIFF 7).
    Jpeg,
    /// The data between two restart markers; the tables are the header before them.
    JpegScan,
    /// JPEG 2000, as a codestream or in a JP2 box (TIFF 33003, 33005, 34712).
    Jp2k,
    /// WebP, lossy or lossless (TIFF 50001).
    WebP,
    /// A whole PNG file.
    Png,
}

impl Codec {
    /// Whether it gives the bytes of samples, and not a picture.
    pub(super) fn is_bytes(self) -> bool {
        matches!(
            self,
            Self::Raw | Self::Deflate | Self::Lzw | Self::Zstd | Self::PackBits
        )
    }
}

/// What a stored block holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Columns that may be there, and of bytes must be.
    pub(super) width: usize,
    /// Columns that must be there.
    pub(super) least: usize,
    /// Rows that must be there.
    pub(super) height: usize,
    /// Rows that may be there: the last strip is sometimes stored whole.
    pub(super) most: usize,
    pub(super) samples: usize,
    /// Bytes of `height` rows as stored, and of `most`.
    pub(super) bytes: [usize; 2],
}

impl Shape {
    /// Holds a picture's own size against the block's.
    pub(super) fn expect(self, what: &str, width: usize, height: usize) -> Result<(), Fault> {
        let (columns, rows) = (self.least..=self.width, self.height..=self.most);
        if columns.contains(&width) && rows.contains(&height) {
            return Ok(());
        }
        let expected = format!("{what} of {} × {} pixels", self.width, self.height);
        Err(Fault::new(expected, format!("{width} × {height}")))
    }
}

/// What decoded samples are: 8 bits each, interleaved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Got {
    /// Pixels of a row.
    pub(super) width: usize,
    pub(super) samples: usize,
    pub(super) colour: Colour,
}

/// What a codec found, before the file and the block are known.
#[derive(Debug, Clone)]
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

    pub(super) fn unsupported(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            unsupported: true,
            ..Self::new(expected, found)
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
    deflate: Option<Decompressor>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    scan: Vec<u8>,
}

impl std::fmt::Debug for Codecs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codecs").finish_non_exhaustive()
    }
}

impl Codecs {
    /// Fills `out` with at least the rows of `shape`, and says what they are where
    /// the codec knows; `None`: bytes as the layout describes them.
    pub(super) fn decode(
        &mut self,
        layout: &Layout,
        shape: Shape,
        coded: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Got>, Fault> {
        let (tables, colour) = (&layout.tables, layout.colour);
        let got = match layout.codec {
            Codec::Jpeg => jpeg::decode(coded, tables, colour, shape, None, out)?,
            Codec::JpegScan => {
                bands::join(tables, shape.height, coded, &mut self.scan);
                jpeg::decode(&self.scan, &[], colour, shape, None, out)?
            }
            Codec::Jp2k => jp2k::decode(coded, colour, shape, out)?,
            Codec::WebP => webp::decode(coded, shape, out)?,
            Codec::Png => png::decode(coded, shape, out)?,
            _ => {
                self.bytes(layout.codec, shape, coded, out)?;
                return Ok(None);
            }
        };
        Ok(Some(got))
    }

    fn bytes(
        &mut self,
        codec: Codec,
        shape: Shape,
        coded: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let [least, most] = shape.bytes;
        grow(out, most)?;
        let got = match codec {
            Codec::Deflate => self.deflate(coded, out)?,
            Codec::Zstd => self.zstd(coded, out)?,
            Codec::Lzw => stream("a TIFF LZW stream", Lzw::new(coded), out)?,
            Codec::PackBits => stream("runs of PackBits", PackBits::new(coded), out)?,
            _ => raw(coded, out),
        };
        if got < least {
            return Err(Fault::new(format!("{least} bytes"), got.to_string()));
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

/// Makes room for `bytes`, if there is memory for them.
pub(super) fn grow(out: &mut Vec<u8>, bytes: usize) -> Result<(), Fault> {
    let more = bytes.saturating_sub(out.len());
    let room = out.try_reserve(more);
    room.map_err(|e| Fault::new(format!("memory for {bytes} bytes"), e.to_string()))?;
    out.resize(bytes, 0);
    Ok(())
}

fn raw(coded: &[u8], out: &mut [u8]) -> usize {
    let n = coded.len().min(out.len());
    out[..n].copy_from_slice(&coded[..n]);
    n
}

fn stream(what: &str, from: impl std::io::Read, out: &mut [u8]) -> Result<usize, Fault> {
    read_full(from, out).map_err(|e| Fault::new(what, e.to_string()))
}
