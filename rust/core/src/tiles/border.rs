//! What a tile shows where its window lies outside the picture.

use std::ops::Range;

use crate::images::RGB;

/// How pixels outside the picture are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Border {
    /// One grey level.
    Fill,
    /// The nearest visible pixel of the row or column.
    Edge,
    /// The visible pixels mirrored at the outermost one, which is not repeated.
    Reflect,
}

/// Makes the invisible rows and columns of a rectangle from its visible ones, as
/// numpy's `pad` makes them; where nothing is visible nothing changes.
pub(super) fn extend(pixels: &mut [u8], width: usize, visible: &[Range<usize>; 2], border: Border) {
    let [columns, rows] = visible;
    let height = pixels.len() / (width * RGB);
    if border == Border::Fill || columns.is_empty() || rows.is_empty() {
        return;
    }
    if columns.len() < width {
        for row in pixels
            .chunks_exact_mut(width * RGB)
            .skip(rows.start)
            .take(rows.len())
        {
            for x in (0..columns.start).chain(columns.end..width) {
                let from = source(x, columns, border) * RGB;
                row.copy_within(from..from + RGB, x * RGB);
            }
        }
    }
    let stride = width * RGB;
    for y in (0..rows.start).chain(rows.end..height) {
        let from = source(y, rows, border) * stride;
        pixels.copy_within(from..from + stride, y * stride);
    }
}

/// The visible place that an invisible one is made from.
fn source(at: usize, visible: &Range<usize>, border: Border) -> usize {
    if border == Border::Edge || visible.len() == 1 {
        return at.clamp(visible.start, visible.end - 1);
    }
    let period = 2 * (visible.len() as i64 - 1);
    let step = (at as i64 - visible.start as i64).rem_euclid(period);
    visible.start + step.min(period - step) as usize
}
