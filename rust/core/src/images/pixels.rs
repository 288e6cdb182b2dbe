//! From samples as stored to RGB in place.

use super::codec::{Codec, Shape};
use super::{Block, Layout, RGB};

/// What a level's samples mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// One sample, 0 is black; a second one (alpha) is dropped.
    Grey,
    /// One sample, 0 is white.
    GreyInverted,
    /// Red, green, blue; a fourth sample (alpha) is dropped.
    Rgb,
    /// Luma and chroma, which only a JPEG codec turns to RGB.
    YCbCr,
    /// What the coded stream says: a file that is one JPEG or PNG.
    Stream,
}

/// Where a stored block's samples go in the block's RGB rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    width: usize,
    stored_width: usize,
    /// Bytes from one stored pixel to the next.
    samples: usize,
    colour: Colour,
    plane: Option<usize>,
}

impl Placement {
    pub(super) fn new(layout: &Layout, block: Block, plane: usize) -> Self {
        let shape = layout.stored_shape(block);
        // These two codecs make RGB of whatever they find, grey too.
        let rgb = matches!(layout.codec, Codec::Jpeg | Codec::Png);
        Self {
            width: block.width,
            stored_width: shape.width,
            samples: if rgb { RGB } else { shape.samples },
            colour: match layout.colour {
                Colour::Grey if rgb => Colour::Rgb,
                colour => colour,
            },
            plane: layout.planar.then_some(plane),
        }
    }

    /// Copies the rows that fall inside the level.
    pub(super) fn place(&self, stored: &[u8], out: &mut [u8]) {
        let rows = stored.chunks_exact(self.stored_width * self.samples);
        for (out, row) in out.chunks_exact_mut(self.width * RGB).zip(rows) {
            match self.plane {
                Some(plane) => self.place_plane(plane, row, out),
                None => self.place_row(row, out),
            }
        }
    }

    fn place_row(&self, row: &[u8], out: &mut [u8]) {
        if self.samples == RGB && self.colour != Colour::GreyInverted {
            out.copy_from_slice(&row[..out.len()]);
            return;
        }
        let pixels = out
            .chunks_exact_mut(RGB)
            .zip(row.chunks_exact(self.samples));
        match self.colour {
            Colour::Grey => pixels.for_each(|(rgb, s)| rgb.fill(s[0])),
            Colour::GreyInverted => pixels.for_each(|(rgb, s)| rgb.fill(!s[0])),
            Colour::Rgb | Colour::YCbCr | Colour::Stream => {
                pixels.for_each(|(rgb, s)| rgb.copy_from_slice(&s[..RGB]));
            }
        }
    }

    fn place_plane(&self, plane: usize, row: &[u8], out: &mut [u8]) {
        let samples = row.chunks_exact(self.samples).map(|pixel| pixel[0]);
        let pixels = out.chunks_exact_mut(RGB).zip(samples);
        match self.colour {
            Colour::Grey if plane == 0 => pixels.for_each(|(rgb, s)| rgb.fill(s)),
            Colour::GreyInverted if plane == 0 => pixels.for_each(|(rgb, s)| rgb.fill(!s)),
            Colour::Rgb if plane < RGB => pixels.for_each(|(rgb, s)| rgb[plane] = s),
            _ => {}
        }
    }
}

/// Adds to each sample the one a pixel to its left (TIFF 6.0, section 14).
pub(super) fn undo_differences(samples: &mut [u8], shape: Shape) {
    for row in samples.chunks_exact_mut(shape.width * shape.samples) {
        for i in shape.samples..row.len() {
            row[i] = row[i].wrapping_add(row[i - shape.samples]);
        }
    }
}
