//! One level of an image as a grid of blocks, and their pixels.
//!
//! A TIFF tile, a TIFF strip, a whole JPEG or PNG file: each is a block, bytes
//! at an offset that a codec turns into a rectangle of the level. Whoever reads
//! the file's header fills in [`Layout`]; nothing here knows about tags. What
//! comes out is always 8-bit RGB, rows from the top, pixels packed.

mod codec;
mod jpeg;
mod pixels;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::Result;
use crate::io::ReadAt;
use crate::{Error, Watch};

pub use codec::Codec;
pub use pixels::Colour;

/// Bytes of a pixel that comes out: red, green, blue.
pub const RGB: usize = 3;

/// Pixels of the largest block that is decoded: 3 GiB of RGB.
const LARGEST: usize = 1 << 30;

/// Colour, alpha, and a few that some writers add; those after colour are dropped.
const MOST_SAMPLES: usize = 8;

/// What a header says of a level: its grid of blocks, and how they are coded.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Width of the level in pixels.
    pub width: usize,
    /// Height of the level in pixels.
    pub height: usize,
    /// Width of a block.
    pub block_width: usize,
    /// Height of a block.
    pub block_height: usize,
    /// Whether blocks at the right and bottom edge are stored at full size, as
    /// TIFF tiles are; strips end with the image.
    pub padded: bool,
    /// 8-bit samples a pixel has in the file.
    pub samples: usize,
    /// Whether each block holds one sample of every pixel, samples in turn.
    pub planar: bool,
    /// How a block's bytes are coded.
    pub codec: Codec,
    /// Whether rows hold differences from the pixel to the left (TIFF predictor 2).
    pub differenced: bool,
    /// What the samples mean.
    pub colour: Colour,
    /// JPEG tables shared by all blocks, a stream of their own; may be empty.
    pub tables: Vec<u8>,
    /// Where each block starts in the file.
    pub offsets: Vec<u64>,
    /// Coded size of each block; 0 where the file leaves a block out.
    pub lengths: Vec<u64>,
}

/// A level that can be decoded, from any thread.
#[derive(Debug)]
pub struct Level {
    /// Distinguishes open levels in a cache.
    pub id: u64,
    layout: Layout,
    file: ReadAt,
}

/// What one thread keeps between blocks: buffers and codec states.
#[derive(Debug, Default)]
pub struct Decoder {
    coded: Vec<u8>,
    samples: Vec<u8>,
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
        let file = ReadAt::open(path)?;
        layout.check(path)?;
        let id = IDS.fetch_add(1, Relaxed);
        Ok(Self { id, layout, file })
    }

    /// What the header said.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The rectangle that a block covers.
    pub fn block(&self, index: usize) -> Block {
        let layout = &self.layout;
        let x = index % layout.across() * layout.block_width;
        let y = index / layout.across() * layout.block_height;
        Block {
            x,
            y,
            width: layout.block_width.min(layout.width - x),
            height: layout.block_height.min(layout.height - y),
        }
    }

    /// Decodes one block to RGB: `out` becomes its rows, [`Block::width`] pixels
    /// each.
    pub fn decode(
        &self,
        index: usize,
        decoder: &mut Decoder,
        out: &mut Vec<u8>,
        watch: &Watch,
    ) -> Result<()> {
        watch.check()?;
        let block = self.block(index);
        out.clear();
        out.resize(block.width * block.height * RGB, 0);
        let planes = if self.layout.planar {
            self.layout.samples
        } else {
            1
        };
        for plane in 0..planes {
            let stored = plane * self.layout.n_blocks() + index;
            if self.layout.lengths[stored] == 0 {
                continue;
            }
            self.decode_stored(stored, block, decoder)?;
            let to = pixels::Placement::new(&self.layout, block, plane);
            to.place(&decoder.samples, out);
        }
        Ok(())
    }

    /// Reads and inflates what is stored as one block into `decoder.samples`.
    fn decode_stored(&self, stored: usize, block: Block, decoder: &mut Decoder) -> Result<()> {
        let layout = &self.layout;
        let what = self.name(stored);
        let (offset, length) = (layout.offsets[stored], layout.lengths[stored]);
        self.file.read(&what, offset, length, &mut decoder.coded)?;
        let shape = layout.stored_shape(block);
        (decoder.codecs)
            .decode(layout, shape, &decoder.coded, &mut decoder.samples)
            .map_err(|fault| fault.at(self.file.path(), what))?;
        if layout.differenced {
            pixels::undo_differences(&mut decoder.samples, shape);
        }
        Ok(())
    }

    /// How messages call a stored block: by row and column of the grid.
    fn name(&self, stored: usize) -> String {
        let index = stored % self.layout.n_blocks();
        let (row, col) = (index / self.layout.across(), index % self.layout.across());
        format!("block {row},{col}")
    }
}

impl Layout {
    /// Blocks in a row of the grid.
    pub fn across(&self) -> usize {
        self.width.div_ceil(self.block_width)
    }

    /// Blocks in a column of the grid.
    pub fn down(&self) -> usize {
        self.height.div_ceil(self.block_height)
    }

    /// Blocks of the grid, planes not counted.
    pub fn n_blocks(&self) -> usize {
        self.across() * self.down()
    }

    /// Columns, least rows and samples that a stored block must hold.
    fn stored_shape(&self, block: Block) -> codec::Shape {
        codec::Shape {
            width: if self.padded {
                self.block_width
            } else {
                block.width
            },
            height: if self.padded {
                self.block_height
            } else {
                block.height
            },
            most: self.block_height,
            samples: if self.planar { 1 } else { self.samples },
        }
    }

    /// Holds the header's numbers against each other, before anything is sized by them.
    fn check(&self, path: &Path) -> Result<()> {
        let fault = |expected: &str, found: String| {
            Err(Error::Format {
                path: path.to_owned(),
                what: "image".into(),
                expected: expected.into(),
                found,
            })
        };
        let sides = [self.width, self.height, self.block_width, self.block_height];
        let block = self.block_width.saturating_mul(self.block_height);
        if sides.contains(&0) || sides.iter().any(|&side| side > 1 << 31) || block > LARGEST {
            let expected = "sides from 1 to 2³¹ and blocks of at most 2³⁰ pixels";
            let [width, height, across, down] = sides;
            let found = format!("{width} × {height} in blocks of {across} × {down}");
            return fault(expected, found);
        }
        let grey = matches!(self.colour, Colour::Grey | Colour::GreyInverted);
        if !(if grey { 1 } else { RGB }..=MOST_SAMPLES).contains(&self.samples) {
            return fault(
                "1 to 8 samples of grey or 3 to 8 of colour",
                self.samples.to_string(),
            );
        }
        let stored = self.n_blocks() * if self.planar { self.samples } else { 1 };
        let (offsets, lengths) = (self.offsets.len(), self.lengths.len());
        if (offsets, lengths) != (stored, stored) {
            let found = format!("{offsets} offsets and {lengths} lengths");
            return fault(&format!("{stored} blocks"), found);
        }
        Ok(())
    }
}
