//! Sums per gene that the highly variable genes are chosen from.
//!
//! Floating-point sums run over fixed blocks of [`ROW_BLOCK`] rows, one block a
//! thread, and the blocks are merged in order, so that the answer is the same
//! bit for bit for any number of threads.

mod pearson;

use rayon::prelude::*;

use crate::Watch;
use crate::csr::{Csr, Index, ROW_BLOCK};
use crate::error::{Result, expect_len};

pub use pearson::{Pearson, pearson};

/// A number type that a matrix of counts or log counts comes in.
pub trait Real: Copy + Send + Sync {
    /// The value in double precision; 64-bit integers above 2⁵³ are rounded.
    fn real(self) -> f64;
}

macro_rules! real {
    ($($t:ty),*) => {$(
        impl Real for $t {
            fn real(self) -> f64 {
                self as f64
            }
        }
    )*};
}

real!(i32, i64, f32, f64);

/// What a stored value stands for when its moments are taken.
#[derive(Debug, Clone, Copy)]
pub enum Scale<'a> {
    /// Itself.
    Stored,
    /// `exp(x ln base) - 1`, given `ln base`: undoes log1p.
    Expm1(f64),
    /// Itself times its row's factor: normalises without a copy.
    Rows(&'a [f64]),
}

/// First and second moments of each column, zeros included.
#[derive(Debug)]
pub struct Moments {
    /// Sum over the rows.
    pub sum: Vec<f64>,
    /// Sum of squared deviations from the column's mean.
    pub m2: Vec<f64>,
}

/// What is stored, as far as methods mind: a guard against data of the wrong kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Some value is NaN or infinite.
    pub infinite: bool,
    /// Some value is below zero.
    pub negative: bool,
    /// Some value is not whole.
    pub fractional: bool,
    /// Some row's columns do not ascend strictly: unsorted, or one there twice.
    pub disordered: bool,
}

impl Kinds {
    fn or(self, other: Self) -> Self {
        Self {
            infinite: self.infinite | other.infinite,
            negative: self.negative | other.negative,
            fractional: self.fractional | other.fractional,
            disordered: self.disordered | other.disordered,
        }
    }

    fn of<T: Real, I: Index>((cols, values): (&[I], &[T])) -> Self {
        let mut kinds = Self::default();
        for x in values {
            let x = x.real();
            kinds.infinite |= !x.is_finite();
            kinds.negative |= x < 0.0;
            kinds.fractional |= x != x.trunc();
        }
        for pair in cols.windows(2) {
            kinds.disordered |= pair[0].at() >= pair[1].at();
        }
        kinds
    }
}

/// Looks at every stored value and column once.
pub fn kinds<T: Real, I: Index>(csr: Csr<'_, T, I>, watch: &Watch) -> Result<Kinds> {
    let csr = csr.checked(watch)?;
    Ok((0..csr.n_rows())
        .into_par_iter()
        .with_min_len(ROW_BLOCK)
        .map(|row| Kinds::of(csr.row(row)))
        .reduce(Kinds::default, Kinds::or))
}

/// Sum of each row.
pub fn row_sums<T: Real, I: Index>(csr: Csr<'_, T, I>, watch: &Watch) -> Result<Vec<f64>> {
    Ok(totals(csr.checked(watch)?))
}

fn totals<T: Real, I: Index>(csr: Csr<'_, T, I>) -> Vec<f64> {
    (0..csr.n_rows())
        .into_par_iter()
        .with_min_len(ROW_BLOCK)
        .map(|row| csr.row(row).1.iter().map(|x| x.real()).sum())
        .collect()
}

/// Moments of each column of the scaled values.
///
/// Two passes: sums, then squared deviations from the mean, so that nothing
/// cancels. Zeros enter the second as `(n - nnz) mean²`.
pub fn moments<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    scale: Scale<'_>,
    watch: &Watch,
) -> Result<Moments> {
    let csr = csr.checked(watch)?;
    if let Scale::Rows(factors) = scale {
        expect_len("row factors", factors.len(), csr.n_rows())?;
    }
    let n = csr.n_rows() as f64;
    let value = |row: usize, x: f64| match scale {
        Scale::Stored => x,
        Scale::Expm1(log_base) => (x * log_base).exp_m1(),
        Scale::Rows(factors) => x * factors[row],
    };
    let sums = column_sums_of(csr, watch, |row, _, x| [value(row, x), 1.0])?;
    let sum: Vec<f64> = sums.iter().map(|s| s[0]).collect();
    let mean: Vec<f64> = sum.iter().map(|s| s / n).collect();
    let squares = column_sums_of(csr, watch, |row, col, x| {
        let d = value(row, x) - mean[col];
        [d * d, 0.0]
    })?;
    let m2 = (squares.iter().zip(&sums).zip(&mean))
        .map(|((square, sum), mean)| square[0] + (n - sum[1]) * mean * mean)
        .collect();
    Ok(Moments { sum, m2 })
}

/// Two sums a column: `row(sums, r)` adds what row `r` holds, for every row.
fn column_sums<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    watch: &Watch,
    row: impl Fn(&mut [[f64; 2]], usize) + Sync,
) -> Result<Vec<[f64; 2]>> {
    let blocks: Vec<usize> = (0..csr.n_rows()).step_by(ROW_BLOCK).collect();
    let partial = (blocks.par_iter())
        .map(|&first| {
            watch.check()?;
            let mut sums = vec![[0.0; 2]; csr.n_cols];
            for r in first..(first + ROW_BLOCK).min(csr.n_rows()) {
                row(&mut sums, r);
            }
            Ok(sums)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut sums = vec![[0.0; 2]; csr.n_cols];
    for block in partial {
        for (sum, part) in sums.iter_mut().zip(block) {
            sum[0] += part[0];
            sum[1] += part[1];
        }
    }
    Ok(sums)
}

/// [`column_sums`] of what `term(row, col, x)` gives for each stored value.
fn column_sums_of<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    watch: &Watch,
    term: impl Fn(usize, usize, f64) -> [f64; 2] + Sync,
) -> Result<Vec<[f64; 2]>> {
    column_sums(csr, watch, |sums, row| {
        let (cols, values) = csr.row(row);
        for (col, x) in cols.iter().zip(values) {
            let [a, b] = term(row, col.at(), x.real());
            let sum = &mut sums[col.at()];
            sum[0] += a;
            sum[1] += b;
        }
    })
}
