//! Counts summed as integers: exact, in any order.
//!
//! A count below [`SMALL`] adds one number to one cell of its block's: its presence,
//! its square and itself lie side by side in 64 bits, wide enough for a block of
//! rows. So a pass touches one word a count, and the three sums come out of it.

use super::blocks::fold_blocks;
use super::kinds::{Kinds, Real, row_of};
use crate::csr::{Csr, Index, ROW_BLOCK};
use crate::error::{Result, expect_len};
use crate::{Error, Watch};

const SMALL: u32 = 256;
const SQUARE_AT: u32 = 20;
const PRESENT_AT: u32 = 48;

const _: () = {
    let (rows, most) = (ROW_BLOCK as u64, SMALL as u64 - 1);
    assert!(rows * most < 1 << SQUARE_AT);
    assert!(rows * most * most < 1 << (PRESENT_AT - SQUARE_AT));
    assert!(rows < 1 << (64 - PRESENT_AT));
};

/// Sums a column, which [`add_counts`] adds to.
#[derive(Debug)]
pub struct CountSums<'a> {
    /// Of the counts.
    pub sum: &'a mut [u64],
    /// Of their squares.
    pub squares: &'a mut [u64],
    /// Number of those above zero.
    pub nonzero: &'a mut [u64],
}

/// A block's sums: small counts packed, larger ones apart, and the sum of each row.
struct Part {
    packed: Vec<u64>,
    larger: Vec<[u64; 3]>,
    totals: Vec<u64>,
    kinds: Kinds,
}

/// Adds counts to the sums of their columns, and writes the sum of each row.
///
/// The sums are those of counts only where the answer is [`Kinds::exact`].
pub fn add_counts<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    sums: CountSums<'_>,
    totals: &mut [f64],
    watch: &Watch,
) -> Result<Kinds> {
    for found in [sums.sum.len(), sums.squares.len(), sums.nonzero.len()] {
        expect_len("sums of the columns", found, csr.n_cols)?;
    }
    expect_len("totals of the rows", totals.len(), csr.n_rows())?;
    let (mut sums, mut kinds, mut fits) = (sums, Kinds::default(), true);
    fold_blocks(
        csr.n_rows(),
        watch,
        || Part {
            packed: vec![0; csr.n_cols],
            larger: Vec::new(),
            totals: Vec::with_capacity(ROW_BLOCK),
            kinds: Kinds::default(),
        },
        |part, rows| rows.into_iter().try_for_each(|row| part.add(&csr, row)),
        |rows, part| {
            kinds = kinds.or(part.kinds);
            for (total, part) in totals[rows].iter_mut().zip(part.totals.drain(..)) {
                *total = part as f64;
            }
            fits &= part.merge(&mut sums);
        },
    )?;
    if fits || !kinds.exact() {
        return Ok(kinds);
    }
    Err(Error::Overflow {
        what: "squares of a gene's counts",
        dtype: "uint64",
    })
}

impl Part {
    fn add<T: Real, I: Index>(&mut self, csr: &Csr<'_, T, I>, row: usize) -> Result<()> {
        let (cols, values, kinds) = row_of(csr, row)?;
        self.kinds = self.kinds.or(kinds);
        let mut total = 0;
        if kinds.exact() {
            for (col, x) in cols.iter().zip(values) {
                let x = x.count();
                total += u64::from(x);
                if x < SMALL {
                    let cell = &mut self.packed[col.at()];
                    *cell = cell.wrapping_add(packed(x));
                } else {
                    self.add_larger(csr.n_cols, col.at(), u64::from(x));
                }
            }
        }
        self.totals.push(total);
        Ok(())
    }

    /// Few blocks have large counts: their sums are made when the first comes.
    #[cold]
    fn add_larger(&mut self, n_cols: usize, col: usize, x: u64) {
        self.larger.resize(n_cols, [0; 3]);
        let sums = &mut self.larger[col];
        *sums = [sums[0] + x, sums[1].wrapping_add(x * x), sums[2] + 1];
    }

    /// Adds the block to the sums and leaves it empty; whether they fit.
    fn merge(&mut self, sums: &mut CountSums<'_>) -> bool {
        let mut fits = true;
        let mut add = |col: usize, x: u64, square: u64, n: u64| {
            sums.sum[col] = sums.sum[col].wrapping_add(x);
            sums.nonzero[col] = sums.nonzero[col].wrapping_add(n);
            let (square, over) = sums.squares[col].overflowing_add(square);
            sums.squares[col] = square;
            fits &= !over;
        };
        for (col, cell) in self.packed.iter_mut().enumerate() {
            let word = std::mem::take(cell);
            let below = |bits: u32| word & ((1 << bits) - 1);
            let square = below(PRESENT_AT) >> SQUARE_AT;
            add(col, below(SQUARE_AT), square, word >> PRESENT_AT);
        }
        for (col, [x, square, n]) in self.larger.drain(..).enumerate() {
            add(col, x, square, n);
        }
        self.kinds = Kinds::default();
        fits
    }
}

#[inline]
fn packed(x: u32) -> u64 {
    let x = u64::from(x);
    x | (x * x) << SQUARE_AT | x.min(1) << PRESENT_AT
}
