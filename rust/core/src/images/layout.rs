//! What a header says of a level, held against itself.

use std::path::Path;

use super::codec::{Codec, Shape};
use super::{Block, Colour, Pick, RGB};
use crate::Error;
use crate::error::Result;

/// Bytes of the largest block that is decoded.
const LARGEST: usize = 3 << 30;

/// Colour, alpha, and a few that some writers add.
const MOST_SAMPLES: usize = 64;

/// A level's grid of blocks, and how they are coded.
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
    /// Samples a pixel has in the file.
    pub samples: usize,
    /// Whether each block holds one sample of every pixel, samples in turn.
    pub planar: bool,
    /// Bits of a sample as stored: 8 or 16.
    pub bits: usize,
    /// Whether 16-bit samples have their upper byte first.
    pub big_endian: bool,
    /// How a block's bytes are coded.
    pub codec: Codec,
    /// Whether rows hold differences from the pixel to the left (TIFF predictor 2).
    pub differenced: bool,
    /// What the samples mean.
    pub colour: Colour,
    /// Which samples are shown as red, green and blue; `None`: what they mean.
    pub pick: Option<Pick>,
    /// 256 colours, RGB, where samples are indices.
    pub palette: Vec<u8>,
    /// JPEG tables shared by all blocks, a stream of their own; may be empty.
    pub tables: Vec<u8>,
    /// Where each block starts in the file.
    pub offsets: Vec<u64>,
    /// Coded size of each block; 0 where the file leaves a block out.
    pub lengths: Vec<u64>,
}

impl Layout {
    /// Blocks of the grid, planes not counted.
    pub(super) fn n_blocks(&self) -> usize {
        self.width.div_ceil(self.block_width) * self.height.div_ceil(self.block_height)
    }

    /// Which plane becomes red, green and blue.
    pub(super) fn plane_pick(&self) -> Pick {
        let grey = matches!(self.colour, Colour::Grey | Colour::GreyInverted);
        self.pick.unwrap_or(if grey { [0; RGB] } else { [0, 1, 2] })
    }

    /// What is shown of a block that the file leaves out: its samples are 0.
    pub(super) fn blank(&self) -> [u8; RGB] {
        match self.colour {
            Colour::GreyInverted if self.pick.is_none() => [u8::MAX; RGB],
            Colour::Palette => [self.palette[0], self.palette[1], self.palette[2]],
            _ => [0; RGB],
        }
    }

    /// Whether the file stores it as one block, a plane at most.
    pub(super) fn is_one_block(&self) -> bool {
        self.n_blocks() == 1 && !self.padded && self.lengths.iter().all(|&n| n > 0)
    }

    /// What `rows` (at least and at most) of `width` pixels take.
    pub(super) fn shape(&self, width: usize, rows: [usize; 2]) -> Shape {
        let samples = if self.planar { 1 } else { self.samples };
        let bytes = rows.map(|rows| match self.colour {
            Colour::YCbCr { across, down } if self.codec.is_bytes() && (across, down) != (1, 1) => {
                let (across, down) = (usize::from(across), usize::from(down));
                width.div_ceil(across) * rows.div_ceil(down) * (across * down + 2)
            }
            _ => width * rows * samples * self.bits / 8,
        });
        let [height, most] = rows;
        Shape {
            width,
            least: width,
            height,
            most,
            samples,
            bytes,
        }
    }

    /// Columns, rows and samples that a stored block must hold. Pictures at the edge may
    /// be stored cropped; bytes may not, for their rows could not be told apart.
    pub(super) fn stored_shape(&self, block: Block) -> Shape {
        if !self.padded {
            return self.shape(block.width, [block.height, self.block_height]);
        }
        if self.codec.is_bytes() {
            return self.shape(self.block_width, [self.block_height; 2]);
        }
        Shape {
            least: block.width,
            ..self.shape(self.block_width, [block.height, self.block_height])
        }
    }

    /// Holds the header's numbers against each other, before anything is sized by them.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let fault = |expected: &str, found: String| {
            Err(Error::Format {
                path: path.to_owned(),
                what: "image".into(),
                expected: expected.into(),
                found,
            })
        };
        let sides = [self.width, self.height, self.block_width, self.block_height];
        if sides.contains(&0) || sides.iter().any(|&side| side > 1 << 31) {
            let found = format!(
                "{} × {} in blocks of {} × {}",
                sides[0], sides[1], sides[2], sides[3]
            );
            return fault("sides from 1 to 2³¹", found);
        }
        let least = self.least_samples();
        if !(least..=MOST_SAMPLES).contains(&self.samples) {
            let found = self.samples.to_string();
            return fault(&format!("{least} to {MOST_SAMPLES} samples a pixel"), found);
        }
        if self.colour == Colour::Palette && self.palette.len() != 256 * RGB {
            return fault(
                "a palette of 256 colours",
                format!("{} bytes", self.palette.len()),
            );
        }
        let planes = if self.planar { self.samples } else { 1 };
        let stored = self.n_blocks().saturating_mul(planes);
        let (offsets, lengths) = (self.offsets.len(), self.lengths.len());
        if (offsets, lengths) != (stored, stored) {
            let found = format!("{offsets} offsets and {lengths} lengths");
            return fault(&format!("{stored} blocks"), found);
        }
        Ok(())
    }

    /// Samples that a pixel must have to be what it is said to be.
    fn least_samples(&self) -> usize {
        match self.colour {
            Colour::Grey | Colour::GreyInverted | Colour::Palette | Colour::Stream => 1,
            Colour::Cmyk { .. } => 4,
            _ if self.pick.is_some() => 1,
            _ => RGB,
        }
    }

    /// Refuses blocks that are too large to be decoded at once.
    pub(super) fn check_block(&self, path: &Path, [width, height]: [usize; 2]) -> Result<()> {
        let samples = if self.planar {
            1
        } else {
            self.samples.max(RGB)
        };
        let bytes = samples * self.bits / 8;
        if width.saturating_mul(height).saturating_mul(bytes) <= LARGEST {
            return Ok(());
        }
        Err(Error::Format {
            path: path.to_owned(),
            what: "image".into(),
            expected: "blocks of at most 3 GiB".into(),
            found: format!("{width} × {height} × {bytes} bytes"),
        })
    }
}
