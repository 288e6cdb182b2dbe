//! Pixels as a model wants them, on the CPU: every value by a table, tiles turned on the way.
//!
//! A pixel has 256 values a channel, so whatever normalising and rounding to a type make
//! of them is worked out once, and each tile is read and written once.

use rayon::prelude::*;

use crate::error::{Result, expect_len};
use crate::images::RGB;
use crate::{Error, Watch};

/// Mirrors left to right.
const FLIP: u8 = 1;
/// Turns by 90°, against the clock.
const QUARTER: u8 = 2;
/// Turns by 180°.
const HALF: u8 = 4;

/// What each channel's values become: `table[channel][value]`.
pub type Table<T> = [[T; 256]; RGB];

/// Writes the tiles (n, size, size, 3) into `out`, turned and looked up.
///
/// A tile's `turns` is a sum of 1 (mirrored left to right), 2 (then turned by 90° against
/// the clock) and 4 (then by 180°); an empty `turns` turns none.
pub fn look_up<T: Copy + Send + Sync>(
    tiles: &[u8],
    size: usize,
    turns: &[u8],
    table: &Table<T>,
    out: &mut [T],
    watch: &Watch,
) -> Result<()> {
    watch.check()?;
    expect_len("out", out.len(), tiles.len())?;
    let values = size * size * RGB;
    if values == 0 {
        return Ok(());
    }
    let n = tiles.len() / values;
    expect_len("tiles", tiles.len(), n * values)?;
    if !turns.is_empty() {
        expect_len("turns", turns.len(), n)?;
    }
    let tiles = tiles.par_chunks_exact(values);
    (out.par_chunks_exact_mut(values).zip(tiles).enumerate()).try_for_each(|(i, (out, tile))| {
        watch.check()?;
        turned(tile, size, turns.get(i).copied().unwrap_or(0), table, out);
        Ok::<_, Error>(())
    })
}

/// One tile, read along its rows or across them.
fn turned<T: Copy>(tile: &[u8], size: usize, turn: u8, table: &Table<T>, out: &mut [T]) {
    let (tile, out) = (tile.as_chunks().0, out.as_chunks_mut().0);
    let (first, down, right) = steps(size, turn);
    for (y, row) in out.chunks_exact_mut(size).enumerate() {
        let start = first + y as isize * down;
        if right == 1 {
            let line = &tile[start as usize..][..size];
            for (to, from) in row.iter_mut().zip(line) {
                *to = pixel(*from, table);
            }
        } else {
            for (x, to) in row.iter_mut().enumerate() {
                *to = pixel(tile[(start + x as isize * right) as usize], table);
            }
        }
    }
}

#[inline]
fn pixel<T: Copy>([red, green, blue]: [u8; RGB], table: &Table<T>) -> [T; RGB] {
    [
        table[0][red as usize],
        table[1][green as usize],
        table[2][blue as usize],
    ]
}

/// Which of the given tile's pixels is the turned one's first, and how many pixels it is
/// from one row, and from one column, to the next.
fn steps(size: usize, turn: u8) -> (isize, isize, isize) {
    let last = size as isize - 1;
    let place = |mut y: isize, mut x: isize| {
        if turn & HALF != 0 {
            (y, x) = (last - y, last - x);
        }
        if turn & QUARTER != 0 {
            (y, x) = (x, last - y);
        }
        if turn & FLIP != 0 {
            x = last - x;
        }
        y * size as isize + x
    };
    let first = place(0, 0);
    (first, place(1, 0) - first, place(0, 1) - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_and_looks_up() {
        let tile: Vec<u8> = [1, 2, 3, 4]
            .iter()
            .flat_map(|&v| [v, v + 10, v + 20])
            .collect();
        let table: Table<u16> =
            std::array::from_fn(|c| std::array::from_fn(|value| value as u16 + 1000 * c as u16));
        // Top to bottom, left to right: 1 2 / 3 4.
        let expected: [(u8, [u16; 4]); 5] = [
            (0, [1, 2, 3, 4]),
            (FLIP, [2, 1, 4, 3]),
            (QUARTER, [2, 4, 1, 3]),
            (HALF, [4, 3, 2, 1]),
            (FLIP | QUARTER | HALF, [4, 2, 3, 1]),
        ];
        for (turn, order) in expected {
            let mut out = vec![0_u16; 12];
            look_up(&tile, 2, &[turn], &table, &mut out, &Watch::default()).unwrap();
            let pixels = order.iter().flat_map(|&v| [v, v + 1010, v + 2020]);
            assert_eq!(out, pixels.collect::<Vec<_>>(), "turn {turn}");
        }
    }

    #[test]
    fn lengths_are_checked() {
        let table: Table<u8> = [[0; 256]; RGB];
        let watch = Watch::default();
        assert!(look_up(&[0; 24], 2, &[0], &table, &mut [0; 24], &watch).is_err());
        assert!(look_up(&[0; 12], 2, &[], &table, &mut [0; 11], &watch).is_err());
        assert!(look_up(&[0; 13], 2, &[], &table, &mut [0; 13], &watch).is_err());
        assert!(look_up(&[], 0, &[], &table, &mut [], &watch).is_ok());
    }
}
