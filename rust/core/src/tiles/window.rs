//! Where a tile's pixels come from.
//!
//! A window is a square of the level, given by its top left corner and side in
//! the level's pixels, both possibly fractional when the level is a reduced one.
//! The pixels read are those it covers, even in part, and no others.

use super::bad_window;
use crate::Error;
use crate::error::{Result, expect_len};
use crate::images::{Block, Level, RGB};

/// Pixels of the largest window: its memory is a window a thread, and those that wait.
const LARGEST: f64 = (1 << 30) as f64;

/// A level that tiles are cut from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The level.
    pub level: &'a Level,
    /// Width and height of a window in the level's pixels.
    pub span: [f64; 2],
}

/// All windows of a call.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// The levels.
    pub sources: &'a [Source<'a>],
    /// Which level each tile is cut from.
    pub source: &'a [u32],
    /// Left edge of each window in its level's pixels.
    pub left: &'a [f64],
    /// Top edge of each window in its level's pixels.
    pub top: &'a [f64],
    /// Side of a tile in pixels.
    pub size: usize,
}

/// One window: the rectangle of pixels it covers, and where in it it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window<'a> {
    level: &'a Level,
    x: i64,
    y: i64,
    pub(super) width: usize,
    pub(super) height: usize,
    /// Left, top, width and height of the window within that rectangle.
    pub(super) crop: [f64; 4],
    pub(super) size: usize,
}

impl<'a> Windows<'a> {
    pub(super) fn len(&self) -> usize {
        self.source.len()
    }

    /// Checks lengths, sources and coordinates, so that [`Windows::at`] need not.
    pub(super) fn checked(self) -> Result<Self> {
        expect_len("left", self.left.len(), self.len())?;
        expect_len("top", self.top.len(), self.len())?;
        let size = self.size as f64;
        for &Source { span: [x, y], .. } in self.sources {
            // Pixels of the window, and of what lies between the resizer's two passes.
            let pixels = (x + 2.0) * (y + 2.0).max(size) + size * (y + 2.0);
            if !(x > 0.0 && y > 0.0 && size >= 1.0 && pixels <= LARGEST) {
                return Err(Error::Value {
                    what: "window",
                    expected: "a positive size, and at most 2³⁰ pixels".into(),
                    found: format!("{x} × {y} resized to {size}"),
                });
            }
        }
        for i in 0..self.len() {
            let (left, top) = (self.left[i], self.top[i]);
            let near = |v: f64| v.is_finite() && v.abs() <= f64::from(i32::MAX);
            if !near(left) || !near(top) {
                return Err(bad_window(i, format!("({left}, {top})")));
            }
            if self.source[i] as usize >= self.sources.len() {
                return Err(Error::Index {
                    what: "source of a tile",
                    bound: self.sources.len(),
                    found: i64::from(self.source[i]),
                });
            }
        }
        Ok(self)
    }

    pub(super) fn at(&self, i: usize) -> Window<'a> {
        let source = &self.sources[self.source[i] as usize];
        let (x, width, left) = cover(self.left[i], source.span[0]);
        let (y, height, top) = cover(self.top[i], source.span[1]);
        Window {
            level: source.level,
            x,
            y,
            width,
            height,
            crop: [left, top, source.span[0], source.span[1]],
            size: self.size,
        }
    }
}

/// First pixel and number of pixels that an interval covers, and its start in them.
///
/// A millionth of a pixel is the rounding of the caller's division, not a pixel.
fn cover(start: f64, span: f64) -> (i64, usize, f64) {
    const ROUNDING: f64 = 1e-6;
    let first = (start + ROUNDING).floor();
    let end = (start + span - ROUNDING).ceil().max(first + 1.0);
    (
        first as i64,
        (end - first) as usize,
        (start - first).max(0.0),
    )
}

impl Window<'_> {
    /// Whether the tile is the window, pixel for pixel.
    pub(super) fn is_plain(&self) -> bool {
        let side = self.size as f64;
        self.crop == [0.0, 0.0, side, side]
    }

    /// Whether no part lies outside the image.
    pub(super) fn is_inside(&self) -> bool {
        let (x, y) = (self.columns(), self.rows());
        x.len() == self.width && y.len() == self.height
    }

    fn columns(&self) -> std::ops::Range<usize> {
        clip(self.x, self.width, self.level.layout().width)
    }

    fn rows(&self) -> std::ops::Range<usize> {
        clip(self.y, self.height, self.level.layout().height)
    }

    /// Blocks that it meets, in order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = usize> + use<> {
        let layout = self.level.layout();
        let (across, x, y) = (layout.across(), self.columns(), self.rows());
        let cols = blocks_of(&x, layout.block_width);
        let rows = if x.is_empty() {
            0..0
        } else {
            blocks_of(&y, layout.block_height)
        };
        rows.flat_map(move |row| cols.clone().map(move |col| row * across + col))
    }

    /// Copies the part that lies in a decoded block into the window's rectangle.
    pub(super) fn copy(&self, block: Block, pixels: &[u8], to: &mut [u8]) {
        let x = overlap(&self.columns(), block.x, block.width);
        let y = overlap(&self.rows(), block.y, block.height);
        for row in y {
            let from = ((row - block.y) * block.width + x.start - block.x) * RGB;
            let at = (row as i64 - self.y) as usize * self.width;
            let at = (at + (x.start as i64 - self.x) as usize) * RGB;
            let bytes = x.len() * RGB;
            to[at..at + bytes].copy_from_slice(&pixels[from..from + bytes]);
        }
    }
}

fn clip(start: i64, length: usize, bound: usize) -> std::ops::Range<usize> {
    let first = start.clamp(0, bound as i64) as usize;
    let end = (start + length as i64).clamp(0, bound as i64) as usize;
    first..end.max(first)
}

fn blocks_of(range: &std::ops::Range<usize>, side: usize) -> std::ops::Range<usize> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / side..(range.end - 1) / side + 1
}

fn overlap(range: &std::ops::Range<usize>, start: usize, length: usize) -> std::ops::Range<usize> {
    let first = range.start.max(start);
    first..range.end.min(start + length).max(first)
}
