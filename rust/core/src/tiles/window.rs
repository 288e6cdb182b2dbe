//! Where a tile's pixels come from.
//!
//! A window is a rectangle of the level, given by its top left corner and sides
//! in the level's pixels, all possibly fractional when the level is a reduced
//! one. The pixels read are those it covers, even in part, and no others.

use std::ops::Range;

use crate::Error;
use crate::error::{Result, expect_len};
use crate::images::{Block, Blocks, RGB};

/// Pixels of the largest window: a thread holds one at a time.
const LARGEST: f64 = (1 << 30) as f64;

/// All windows of a call.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// The levels.
    pub sources: &'a [Blocks<'a>],
    /// Which level each tile is cut from.
    pub source: &'a [u32],
    /// Left edge of each window in its level's pixels.
    pub left: &'a [f64],
    /// Top edge of each window in its level's pixels.
    pub top: &'a [f64],
    /// Width of each window in its level's pixels.
    pub width: &'a [f64],
    /// Height of each window in its level's pixels.
    pub height: &'a [f64],
    /// Side of a tile in pixels; `None`: a tile is its window, pixel for pixel.
    pub size: Option<usize>,
}

/// One window: the rectangle of pixels it covers, and where in it it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window<'a> {
    pub(super) blocks: Blocks<'a>,
    x: i64,
    y: i64,
    pub(super) width: usize,
    pub(super) height: usize,
    /// Left, top, width and height of the window within that rectangle.
    pub(super) crop: [f64; 4],
    /// Width and height of the tile.
    pub(super) size: [usize; 2],
}

impl<'a> Windows<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.source.is_empty()
    }

    /// Checks lengths, sources and coordinates, so that [`Windows::at`] need not.
    pub(super) fn checked(self) -> Result<Self> {
        expect_len("left", self.left.len(), self.len())?;
        expect_len("top", self.top.len(), self.len())?;
        expect_len("width", self.width.len(), self.len())?;
        expect_len("height", self.height.len(), self.len())?;
        let most = u32::MAX as usize;
        if self.len() > most || self.sources.len() > most || self.size == Some(0) {
            return Err(Error::Value {
                what: "tiles",
                expected: "fewer than 2³² of a positive size".into(),
                found: format!("{} of {:?}", self.len(), self.size),
            });
        }
        (0..self.len()).try_for_each(|i| self.check(i))?;
        Ok(self)
    }

    fn check(&self, i: usize) -> Result<()> {
        let corner = [self.left[i], self.top[i]];
        let near = |v: f64| v.is_finite() && v.abs() <= f64::from(i32::MAX);
        if !corner.into_iter().all(near) {
            return Err(Error::Value {
                what: "window",
                expected: "a finite corner within 2³¹ pixels of the image".into(),
                found: format!("({}, {}) for tile {i}", corner[0], corner[1]),
            });
        }
        let (x, y) = (self.width[i], self.height[i]);
        let size = self.size.unwrap_or(0) as f64;
        // Pixels of the window, and of what lies between the resizer's two passes.
        let pixels = (x + 2.0) * (y + 2.0).max(size) + size * (y + 2.0);
        if !(x > 0.0 && y > 0.0 && pixels <= LARGEST) {
            return Err(Error::Value {
                what: "window",
                expected: "a positive size, and at most 2³⁰ pixels".into(),
                found: format!("{x} × {y} resized to {size} for tile {i}"),
            });
        }
        if self.source[i] as usize >= self.sources.len() {
            return Err(Error::Index {
                what: "source of a tile",
                bound: self.sources.len(),
                found: i64::from(self.source[i]),
            });
        }
        Ok(())
    }

    pub(super) fn at(&self, i: usize) -> Window<'a> {
        let (x, width, left) = cover(self.left[i], self.width[i]);
        let (y, height, top) = cover(self.top[i], self.height[i]);
        Window {
            blocks: self.sources[self.source[i] as usize],
            x,
            y,
            width,
            height,
            crop: [left, top, self.width[i], self.height[i]],
            size: self.size.map_or([width, height], |side| [side, side]),
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
    /// Bytes of the tile.
    pub(super) fn tile_bytes(&self) -> usize {
        self.size[0] * self.size[1] * RGB
    }

    /// Whether the tile is the window, pixel for pixel.
    pub(super) fn is_plain(&self) -> bool {
        let [width, height] = self.size.map(|side| side as f64);
        self.crop == [0.0, 0.0, width, height]
    }

    /// The level's columns and rows that it covers.
    fn inside(&self) -> [Range<usize>; 2] {
        [
            clip(self.x, self.width, self.blocks.width()),
            clip(self.y, self.height, self.blocks.height()),
        ]
    }

    /// The columns and rows of its rectangle that lie inside the level.
    pub(super) fn visible(&self) -> [Range<usize>; 2] {
        let [x, y] = self.inside();
        let from = |range: Range<usize>, start: i64| {
            let at = (range.start as i64 - start).max(0) as usize;
            at..at + range.len()
        };
        [from(x, self.x), from(y, self.y)]
    }

    /// Blocks that it meets, in order.
    pub(super) fn touched(&self) -> impl Iterator<Item = usize> + use<> {
        let [x, y] = self.inside();
        let across = self.blocks.across();
        let cols = blocks_of(&x, self.blocks.block_width());
        let rows = if x.is_empty() {
            0..0
        } else {
            blocks_of(&y, self.blocks.block_height())
        };
        rows.flat_map(move |row| cols.clone().map(move |col| row * across + col))
    }

    /// The columns and rows of a block that it covers.
    pub(super) fn within(&self, block: Block) -> [Range<usize>; 2] {
        let [x, y] = self.inside();
        [
            overlap(&x, block.x, block.width),
            overlap(&y, block.y, block.height),
        ]
    }

    /// Fills the part that a block would have.
    pub(super) fn blank(&self, block: Block, fill: u8, to: &mut [u8]) {
        let [x, y] = self.within(block);
        for row in y {
            let at = (row as i64 - self.y) as usize * self.width;
            let at = (at + (x.start as i64 - self.x) as usize) * RGB;
            to[at..at + x.len() * RGB].fill(fill);
        }
    }

    /// Copies the part that lies in a decoded block into the window's rectangle;
    /// how many pixels that were.
    pub(super) fn copy(&self, block: Block, pixels: &[u8], to: &mut [u8]) -> usize {
        let [x, y] = self.within(block);
        let n = x.len() * y.len();
        for row in y {
            let from = ((row - block.y) * block.width + x.start - block.x) * RGB;
            let at = (row as i64 - self.y) as usize * self.width;
            let at = (at + (x.start as i64 - self.x) as usize) * RGB;
            let bytes = x.len() * RGB;
            to[at..at + bytes].copy_from_slice(&pixels[from..from + bytes]);
        }
        n
    }
}

fn clip(start: i64, length: usize, bound: usize) -> Range<usize> {
    let first = start.clamp(0, bound as i64) as usize;
    let end = (start + length as i64).clamp(0, bound as i64) as usize;
    first..end.max(first)
}

fn blocks_of(range: &Range<usize>, side: usize) -> Range<usize> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / side..(range.end - 1) / side + 1
}

fn overlap(range: &Range<usize>, start: usize, length: usize) -> Range<usize> {
    let first = range.start.max(start);
    first..range.end.min(start + length).max(first)
}
