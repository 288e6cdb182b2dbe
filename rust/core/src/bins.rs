//! Squares summed into bins, or into whatever groups they belong to.
//!
//! [`assign`] gives squares their bins, [`group_squares`] those of a whole slide; [`sum_groups`] adds up the rows of a matrix in
//! memory, [`sum_stored`] those of a matrix in a file, of which it holds a stretch at a
//! time. Groups are independent and a group's rows are added in input order, which fixes
//! floating-point sums too.

use rayon::prelude::*;

mod grid;
pub mod squares;
mod stream;
mod sums;

use crate::csr::{Csr, Index};
use crate::error::{Result, expect_len};
use crate::{Error, Watch};

pub use grid::{SlideBins, group_squares};
pub use stream::{Stored, sum_stored};
use sums::{Groups, Store};

/// A number type that counts come in, and the wider one they are summed in.
pub trait Count: Copy + Default + Send + Sync + 'static {
    /// Holds any sum that a matrix in memory can have.
    type Sum: Copy + Default + PartialEq + std::ops::AddAssign + Send;
    /// Name that numpy gives the type.
    const DTYPE: &'static str;
    /// The value as a sum.
    fn widen(self) -> Self::Sum;
    /// The sum as a value, if it fits.
    fn narrow(sum: Self::Sum) -> Option<Self>;
}

macro_rules! count {
    ($t:ty, $sum:ty, $name:literal, $sum_in:ident => $narrow:expr) => {
        impl Count for $t {
            type Sum = $sum;
            const DTYPE: &'static str = $name;
            fn widen(self) -> $sum {
                self as $sum
            }
            fn narrow($sum_in: $sum) -> Option<Self> {
                $narrow
            }
        }
    };
}

count!(i32, i64, "int32", sum => sum.try_into().ok());
count!(i64, i128, "int64", sum => sum.try_into().ok());
count!(f32, f64, "float32", sum => Some(sum as f32));
count!(f64, f64, "float64", sum => Some(sum));

/// The bins that hold at least one square, row by row, then column by column.
#[derive(Debug)]
pub struct Bins {
    /// Row of each bin in the grid of bins.
    pub rows: Vec<i64>,
    /// Column of each bin in the grid of bins.
    pub cols: Vec<i64>,
    /// Bin that each square belongs to: an index into the two above.
    pub bin_of_square: Vec<i64>,
}

/// Rows of sums in canonical form: columns ascending, none twice, no zeros.
#[derive(Debug)]
pub struct Sums<T> {
    /// Stored values.
    pub data: Vec<T>,
    /// Column of each value.
    pub indices: Vec<i32>,
    /// Where each row starts.
    pub indptr: Vec<i64>,
}

/// Gives each square its bin: `(row // factor, col // factor)`, bins sorted.
///
/// Rows and columns may be negative; division rounds down, as in Python.
pub fn assign(rows: &[i64], cols: &[i64], factor: i64) -> Result<Bins> {
    expect_len("cols", cols.len(), rows.len())?;
    if factor < 1 {
        return Err(Error::Value {
            what: "factor",
            expected: "at least 1".into(),
            found: factor.to_string(),
        });
    }
    let squares: Vec<(i64, i64)> = (rows.par_iter().zip(cols))
        .map(|(row, col)| (row.div_euclid(factor), col.div_euclid(factor)))
        .collect();
    Ok(Frame::around(&squares).map_or_else(
        || number_by_sorting(&squares),
        |frame| frame.number_by_marking(&squares),
    ))
}

/// The rectangle of bins that the squares span.
struct Frame {
    row: i64,
    col: i64,
    width: usize,
    cells: usize,
}

impl Frame {
    /// `None` when the squares lie so scattered that marking each cell of their
    /// rectangle would cost more than sorting them.
    fn around(squares: &[(i64, i64)]) -> Option<Self> {
        let row = squares.iter().map(|s| s.0).min()?;
        let col = squares.iter().map(|s| s.1).min()?;
        let height = squares.iter().map(|s| s.0).max()?.checked_sub(row)?;
        let width = squares.iter().map(|s| s.1).max()?.checked_sub(col)?;
        let width = usize::try_from(width).ok()?.checked_add(1)?;
        let height = usize::try_from(height).ok()?.checked_add(1)?;
        let cells = width.checked_mul(height)?;
        (cells <= 4 * squares.len() + (1 << 20)).then_some(Self {
            row,
            col,
            width,
            cells,
        })
    }

    fn cell(&self, (row, col): (i64, i64)) -> usize {
        (row - self.row) as usize * self.width + (col - self.col) as usize
    }

    fn number_by_marking(&self, squares: &[(i64, i64)]) -> Bins {
        let mut number = vec![-1; self.cells];
        for &square in squares {
            number[self.cell(square)] = 0;
        }
        let (mut rows, mut cols) = (Vec::new(), Vec::new());
        for (cell, number) in number.iter_mut().enumerate().filter(|(_, n)| **n == 0) {
            *number = rows.len() as i64;
            rows.push(self.row + (cell / self.width) as i64);
            cols.push(self.col + (cell % self.width) as i64);
        }
        let bin_of_square = (squares.par_iter())
            .map(|&square| number[self.cell(square)])
            .collect();
        Bins {
            rows,
            cols,
            bin_of_square,
        }
    }
}

fn number_by_sorting(squares: &[(i64, i64)]) -> Bins {
    let mut bins = squares.to_vec();
    bins.par_sort_unstable();
    bins.dedup();
    let bin_of_square = (squares.par_iter())
        .map(|square| bins.partition_point(|bin| bin < square) as i64)
        .collect();
    let (rows, cols) = bins.into_iter().unzip();
    Bins {
        rows,
        cols,
        bin_of_square,
    }
}

/// Sums the rows of `csr` that share a group; group −1 belongs to none.
pub fn sum_groups<T: Count, I: Index>(
    csr: Csr<'_, T, I>,
    group_of_row: &[i64],
    n_groups: usize,
    watch: &Watch,
) -> Result<Sums<T>> {
    let csr = csr.checked(watch)?;
    expect_len("group of each row", group_of_row.len(), csr.n_rows())?;
    check_columns(csr.n_cols)?;
    let groups = Groups::of(group_of_row, n_groups)?;
    let mut store = Store::with_bound(csr.data.len(), n_groups);
    store.add_sums(csr, &groups, 0..n_groups, watch)?;
    Ok(store.finish())
}

fn check_columns(n_cols: usize) -> Result<()> {
    if n_cols <= i32::MAX as usize {
        return Ok(());
    }
    Err(Error::Value {
        what: "columns",
        expected: "at most 2147483647".into(),
        found: n_cols.to_string(),
    })
}
