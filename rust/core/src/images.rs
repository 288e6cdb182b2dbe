//! One level of an image as a grid of blocks, and their pixels.
//!
//! A TIFF tile, a TIFF strip, a band of a JPEG between restart markers, a tile
//! of a JPEG 2000 picture: each is a block, bytes that a codec turns into a
//! rectangle of the level. Whoever reads the file's header fills in [`Layout`];
//! nothing here knows about tags. What comes out is always 8-bit RGB, rows from
//! the top, pixels packed.

mod access;
mod bands;
mod bytes;
mod codec;
mod jp2k;
mod jpeg;
mod layout;
mod pixels;
mod png;
mod stream;
mod webp;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::Watch;
use crate::error::Result;
use crate::io::{ReadAt, Section};

use access::Access;
use codec::{Fault, Got};
use pixels::{Placement, settle};

pub use codec::Codec;
pub use layout::Layout;
pub use pixels::{Colour, NONE, Pick};
pub use stream::{Stream, Turn};

/// Bytes of a pixel that comes out: red, green, blue.
pub const RGB: usize = 3;

/// Most of a block, in percent, that is decoded as a part: what lies around it must be
/// read all the same.
const WORTH: usize = 80;

/// A level that can be decoded, from any thread.
#[derive(Debug)]
pub struct Level {
    /// Distinguishes open levels in a cache.
    pub id: u64,
    layout: Layout,
    file: Arc<ReadAt>,
    access: OnceLock<Access>,
}

/// What one thread keeps between blocks: buffers and codec states.
#[derive(Debug, Default)]
pub struct Decoder {
    coded: Vec<u8>,
    samples: Vec<u8>,
    scan: Vec<u8>,
    codecs: codec::Codecs,
}

/// A decoded block and the rectangle of the level that it covers.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Left edge in the level.
    pub x: usize,
    /// Top edge in the level.
    pub y: usize,
    /// Columns inside the level.
    pub width: usize,
    /// Rows inside the level.
    pub height: usize,
}

impl Level {
    /// Opens the file and checks the layout against itself.
    pub fn open(path: &Path, layout: Layout) -> Result<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let file = Arc::new(ReadAt::open(path)?);
        layout.check(path)?;
        Ok(Self {
            id: IDS.fetch_add(1, Relaxed),
            layout,
            file,
            access: OnceLock::new(),
        })
    }

    /// The grid of blocks that it is decoded by. The first call may read the file
    /// in search of markers.
    pub fn blocks(&self, watch: &Watch) -> Result<Blocks<'_>> {
        let access = match self.access.get() {
            Some(access) => access,
            None => {
                let found = Access::find(self, watch)?;
                self.access.get_or_init(|| found)
            }
        };
        let [block_width, block_height] = access.block(&self.layout);
        Ok(Blocks {
            level: self,
            access,
            block_width,
            block_height,
        })
    }

    /// Turns samples to RGB rows of `block`: `out` becomes them.
    fn place(
        &self,
        block: Block,
        plane: Option<usize>,
        got: Got,
        samples: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        let to = Placement {
            width: block.width,
            got,
            pick: self.layout.pick,
            palette: &self.layout.palette,
            plane,
            planes: self.layout.plane_pick(),
        };
        let bytes = block.width * block.height * RGB;
        if to.is_identity() && samples.len() >= bytes {
            std::mem::swap(samples, out);
            out.truncate(bytes);
            return;
        }
        if plane.unwrap_or(0) == 0 {
            out.resize(bytes, 0);
            if plane.is_some() {
                out.fill(0);
            }
        }
        to.place(samples, out);
        let last = plane.is_some_and(|plane| plane + 1 == self.layout.samples);
        let meant = self.layout.pick.is_none();
        if last && meant && matches!(self.layout.colour, Colour::YCbCr { .. }) {
            pixels::convert_ycbcr(out);
        }
    }
}

/// A level's blocks, ready to be decoded.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    level: &'a Level,
    access: &'a Access,
    block_width: usize,
    block_height: usize,
}

impl<'a> Blocks<'a> {
    /// The level.
    pub fn level(&self) -> &'a Level {
        self.level
    }

    /// Width of the level in pixels.
    pub fn width(&self) -> usize {
        self.level.layout.width
    }

    /// Height of the level in pixels.
    pub fn height(&self) -> usize {
        self.level.layout.height
    }

    /// Width of a block.
    pub fn block_width(&self) -> usize {
        self.block_width
    }

    /// Height of a block.
    pub fn block_height(&self) -> usize {
        self.block_height
    }

    /// Blocks in a row of the grid.
    pub fn across(&self) -> usize {
        self.width().div_ceil(self.block_width)
    }

    /// Whether blocks can only be decoded from top to bottom, by a [`Stream`].
    pub fn is_stream(&self) -> bool {
        matches!(self.access, Access::Stream { .. })
    }

    /// How the blocks are reached, in a word, and their width and height.
    pub fn describe(&self) -> (&'static str, usize, usize) {
        (self.access.word(), self.block_width, self.block_height)
    }

    /// The rectangle that a block covers.
    pub fn block(&self, index: usize) -> Block {
        let x = index % self.across() * self.block_width;
        let y = index / self.across() * self.block_height;
        Block {
            x,
            y,
            width: self.block_width.min(self.width() - x),
            height: self.block_height.min(self.height() - y),
        }
    }

    /// Decodes one block to RGB: `out` becomes its rows, [`Block::width`] pixels
    /// each. How many pixels it took comes back.
    pub fn decode(
        &self,
        index: usize,
        decoder: &mut Decoder,
        out: &mut Vec<u8>,
        watch: &Watch,
    ) -> Result<u64> {
        watch.check()?;
        let (block, level) = (self.block(index), self.level);
        let fault = |fault: Fault| fault.at(level.file.path(), self.name(index));
        match self.access {
            Access::Grid => self.decode_stored(index, block, decoder, out),
            Access::Bands(bands) => {
                let piece = bands.piece(block, self.height());
                self.read(index, piece.offset, piece.length, decoder)?;
                let (coded, scan) = (&decoder.coded, &mut decoder.scan);
                let samples = &mut decoder.samples;
                let got = bands.decode(&level.layout, &piece, coded, scan, block.height, samples);
                level.place(block, None, got.map_err(fault)?, samples, out);
                Ok((block.width * piece.height) as u64)
            }
            Access::Jp2k { .. } => self.decode_within(index, block, decoder, out),
            Access::Stream { .. } => {
                let stream = Stream::new(*self);
                stream.turn(0, watch)?.decode(index, out, watch)
            }
        }
    }

    /// Decodes a tile of a JPEG 2000 picture.
    fn decode_within(
        &self,
        index: usize,
        block: Block,
        decoder: &mut Decoder,
        out: &mut Vec<u8>,
    ) -> Result<u64> {
        let (level, samples) = (self.level, &mut decoder.samples);
        let colour = level.layout.colour;
        let shape = level.layout.shape(block.width, [block.height; 2]);
        let (mut section, length) = level.section();
        let got = jp2k::Jp2k::open(&mut section, length)
            .and_then(|picture| picture.decode(Some(index), colour, shape, samples))
            .map_err(|fault| fault.at(level.file.path(), self.name(index)))?;
        level.place(block, None, got, samples, out);
        Ok((block.width * block.height) as u64)
    }

    /// Decodes the part of a block that is `wanted` (columns and rows of the level), or
    /// all of it where that is as well: what came out comes back.
    pub fn decode_part(
        &self,
        index: usize,
        wanted: [Range<usize>; 2],
        decoder: &mut Decoder,
        out: &mut Vec<u8>,
        watch: &Watch,
    ) -> Result<(Block, u64)> {
        let (whole, layout) = (self.block(index), &self.level.layout);
        let part = wanted[0].len() * wanted[1].len();
        let jpeg = layout.codec == Codec::Jpeg && matches!(self.access, Access::Grid);
        let stored = !layout.planar && layout.lengths.get(index).is_some_and(|&n| n > 0);
        if !jpeg || !stored || part > whole.width * whole.height * WORTH / 100 {
            let decoded = self.decode(index, decoder, out, watch)?;
            return Ok((whole, decoded));
        }
        watch.check()?;
        let [x, y] = wanted;
        let mut wanted = [
            x.start - whole.x..x.end - whole.x,
            y.start - whole.y..y.end - whole.y,
        ];
        self.read(index, layout.offsets[index], layout.lengths[index], decoder)?;
        let (shape, samples) = (layout.stored_shape(whole), &mut decoder.samples);
        let (tables, colour, part) = (&layout.tables, layout.colour, Some(&mut wanted));
        let got = jpeg::decode(&decoder.coded, tables, colour, shape, part, samples)
            .map_err(|fault| fault.at(self.level.file.path(), self.name(index)))?;
        let [x, y] = wanted;
        let block = Block {
            x: whole.x + x.start,
            y: whole.y + y.start,
            width: x.end.min(whole.width) - x.start,
            height: y.len(),
        };
        self.level.place(block, None, got, samples, out);
        Ok((block, (x.len() * y.len()) as u64))
    }

    /// Decodes what the file stores as a block, plane after plane.
    fn decode_stored(
        &self,
        index: usize,
        block: Block,
        decoder: &mut Decoder,
        out: &mut Vec<u8>,
    ) -> Result<u64> {
        let (level, layout) = (self.level, &self.level.layout);
        let shape = layout.stored_shape(block);
        let n_planes = if layout.planar { layout.samples } else { 1 };
        let n_blocks = layout.n_blocks();
        out.resize(block.width * block.height * RGB, 0);
        for plane in 0..n_planes {
            let stored = plane * n_blocks + index;
            let (offset, length) = (layout.offsets[stored], layout.lengths[stored]);
            let unused = layout.planar && !layout.plane_pick().contains(&(plane as u8));
            if length == 0 || unused {
                if plane == 0 {
                    let blank = layout.blank();
                    out.chunks_exact_mut(RGB)
                        .for_each(|rgb| rgb.copy_from_slice(&blank));
                }
                continue;
            }
            self.read(index, offset, length, decoder)?;
            let samples = &mut decoder.samples;
            let got = decoder
                .codecs
                .decode(layout, shape, &decoder.coded, samples);
            let got = got.map_err(|fault| fault.at(level.file.path(), self.name(index)))?;
            let got = got.unwrap_or_else(|| settle(layout, shape, samples));
            let plane = layout.planar.then_some(plane);
            level.place(block, plane, got, samples, out);
        }
        Ok((shape.width * shape.height) as u64)
    }

    fn read(&self, index: usize, offset: u64, length: u64, decoder: &mut Decoder) -> Result<()> {
        let file = &self.level.file;
        file.read(&self.name(index), offset, length, &mut decoder.coded)
    }

    /// How messages call a block: by row and column of the grid.
    fn name(&self, index: usize) -> String {
        let (row, col) = (index / self.across(), index % self.across());
        format!("block {row},{col}")
    }
}

impl Level {
    /// All that the file stores of a level of one block, and its length.
    fn section(&self) -> (Section, u64) {
        let (offset, length) = (self.layout.offsets[0], self.layout.lengths[0]);
        (Section::new(Arc::clone(&self.file), offset, length), length)
    }
}
