//! The squares of a matrix, found in their slide's grid and grouped into its bins.
//!
//! A slide has eleven million places and a matrix half as many squares: one pass over
//! each instead of an array for every step between.

use crate::error::{Result, expect_len};

/// The place is in the slide's table.
const PRESENT: u8 = 1;
/// The place lies in tissue.
const TISSUE: u8 = 2;
/// The matrix has the square.
const COUNTED: u8 = 4;

/// Bins of squares, row by row, then column by column.
#[derive(Debug, Default)]
pub struct SlideBins {
    /// Row of each bin in the grid of bins.
    pub rows: Vec<i64>,
    /// Column of each bin in the grid of bins.
    pub cols: Vec<i64>,
    /// Whether any place of a bin lies in tissue, the matrix has it or not.
    pub in_tissue: Vec<bool>,
    /// Squares of the matrix in each bin.
    pub n_squares: Vec<i64>,
    /// Bin of each square; −1: of none.
    pub groups: Vec<i64>,
    /// Squares that are at no place of the table; with some, there are no bins.
    pub unplaced: usize,
    /// Squares that the matrix has had before.
    pub again: usize,
}

/// Groups squares into bins of `factor` × `factor` places: those in tissue, or `all`.
///
/// `places` is the grid, `width` columns: 1 where the table has a square, 3 in tissue; bit 4 is used.
pub fn group_squares(
    rows: &[i32],
    cols: &[i32],
    (places, width): (&mut [u8], usize),
    factor: usize,
    all: bool,
) -> Result<SlideBins> {
    expect_len("cols", cols.len(), rows.len())?;
    let (height, width) = (places.len().checked_div(width).unwrap_or(0), width.max(1));
    expect_len("places", places.len(), height * width)?;
    let mut bins = SlideBins::default();
    bins.look_up(rows, cols, places, (height, width));
    if bins.unplaced == 0 {
        let (factor, places) = (factor.max(1), &*places);
        bins.number(rows, cols, (places, width), factor, all);
    }
    Ok(bins)
}

impl SlideBins {
    /// Counts squares that are at no place, and those that come again.
    fn look_up(
        &mut self,
        rows: &[i32],
        cols: &[i32],
        places: &mut [u8],
        (height, width): (usize, usize),
    ) {
        for (&row, &col) in rows.iter().zip(cols) {
            let place = match (usize::try_from(row), usize::try_from(col)) {
                (Ok(row), Ok(col)) if row < height && col < width => &mut places[row * width + col],
                _ => &mut 0,
            };
            self.unplaced += usize::from(*place & PRESENT == 0);
            self.again += usize::from(*place & COUNTED != 0);
            *place |= COUNTED;
        }
    }

    /// Numbers the bins that have a square, and gives each square its bin's number.
    fn number(
        &mut self,
        rows: &[i32],
        cols: &[i32],
        (places, width): (&[u8], usize),
        factor: usize,
        all: bool,
    ) {
        let tissue = any_tissue(places, width, factor);
        let across = width.div_ceil(factor);
        let bin =
            |(&row, &col): (&i32, &i32)| row as usize / factor * across + col as usize / factor;
        let mut number = vec![-1; tissue.len()];
        for at in rows.iter().zip(cols).map(bin) {
            if all || tissue[at] {
                number[at] = 0;
            }
        }
        for (at, number) in number.iter_mut().enumerate().filter(|(_, n)| **n == 0) {
            *number = self.rows.len() as i64;
            self.rows.push((at / across) as i64);
            self.cols.push((at % across) as i64);
            self.in_tissue.push(tissue[at]);
        }
        self.groups = rows.iter().zip(cols).map(|at| number[bin(at)]).collect();
        self.n_squares = vec![0; self.rows.len()];
        for &group in self.groups.iter().filter(|&&group| group >= 0) {
            self.n_squares[group as usize] += 1;
        }
    }
}

/// Whether any place of each bin lies in tissue.
fn any_tissue(places: &[u8], width: usize, factor: usize) -> Vec<bool> {
    let across = width.div_ceil(factor);
    (places.chunks(width * factor))
        .flat_map(|band| {
            let mut tissue = vec![false; across];
            for line in band.chunks(width) {
                for (any, part) in tissue.iter_mut().zip(line.chunks(factor)) {
                    *any |= part.iter().any(|place| place & TISSUE != 0);
                }
            }
            tissue
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: u8 = PRESENT | TISSUE;

    #[test]
    fn tissue_counts_where_the_matrix_has_no_square() {
        let mut places = [1, 1, 1, 1, 1, BOTH, 1, 1, 0];
        let (rows, cols) = ([0, 0, 2, 1], [0, 1, 0, 0]);
        let bins = group_squares(&rows, &cols, (&mut places, 3), 2, true).unwrap();
        assert_eq!((bins.rows, bins.cols), (vec![0, 1], vec![0, 0]));
        assert_eq!(bins.in_tissue, [false, false]);
        assert_eq!(bins.groups, [0, 0, 1, 0]);
        assert_eq!(bins.n_squares, [3, 1]);

        let mut places = [1, 1, 1, 1, 1, BOTH, 1, 1, 0];
        let bins = group_squares(&[0, 0], &[0, 2], (&mut places, 3), 2, false).unwrap();
        assert_eq!((bins.rows, bins.cols), (vec![0], vec![1]));
        assert_eq!((bins.groups, bins.in_tissue), (vec![-1, 0], vec![true]));
    }

    #[test]
    fn squares_off_the_grid_and_those_that_come_again_are_counted() {
        let mut places = [1, 1, 1, 0];
        let found = group_squares(&[0, 1, -1, 0], &[0, 1, 0, 5], (&mut places, 2), 1, true);
        let found = found.unwrap();
        assert_eq!((found.unplaced, found.groups.len()), (3, 0));
        let mut places = [1, 1, 1, 0];
        let found = group_squares(&[0, 0, 1], &[1, 1, 0], (&mut places, 2), 1, true).unwrap();
        assert_eq!((found.unplaced, found.again), (0, 1));
        assert!(group_squares(&[0], &[], (&mut [], 0), 1, true).is_err());
        assert!(group_squares(&[0], &[0], (&mut [1; 5], 2), 1, true).is_err());
    }
}
