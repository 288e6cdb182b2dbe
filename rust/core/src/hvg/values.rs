//! Sums of real values and of their squares, and of squared deviations.

use super::blocks::{Pairs, add_pairs, fold_blocks, merge_pairs};
use super::kinds::{Kinds, Real, columns_of, row_of};
use crate::Watch;
use crate::csr::{Csr, Index, ROW_BLOCK};
use crate::error::{Result, expect_len};

/// What a stored value stands for when it is summed.
#[derive(Debug, Clone, Copy)]
pub enum Scale<'a> {
    /// Itself.
    Stored,
    /// `exp(x ln base) - 1`, given `ln base`: undoes log1p.
    Expm1(f64),
    /// Its share of the row's sum. Normalising to any total is a factor that comes after.
    Share,
    /// `ln(1 + x f)`, with a factor `f` a row.
    Log1p(&'a [f64]),
}

/// Sums of a block: of columns, of rows, and what was seen.
struct Part {
    sums: Pairs,
    totals: Vec<f64>,
    kinds: Kinds,
}

/// Adds `[Σ y, Σ y²]` of the scaled values to their columns, and writes the sum of each
/// row's stored values.
pub fn add_values<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    scale: Scale<'_>,
    sums: &mut [[f64; 2]],
    totals: &mut [f64],
    watch: &Watch,
) -> Result<Kinds> {
    check(&csr, scale, sums.len())?;
    expect_len("totals of the rows", totals.len(), csr.n_rows())?;
    let mut kinds = Kinds::default();
    fold_blocks(
        csr.n_rows(),
        watch,
        || Part {
            sums: vec![[0.0; 2]; csr.n_cols],
            totals: Vec::with_capacity(ROW_BLOCK),
            kinds: Kinds::default(),
        },
        |part, rows| {
            rows.into_iter().try_for_each(|row| {
                let (cols, values, found) = row_of(&csr, row)?;
                part.kinds = part.kinds.or(found);
                part.totals.push(total(values));
                let pair = |y: f64, _| [y, y * y];
                add_row(&mut part.sums, (cols, values), scale, row, pair);
                Ok(())
            })
        },
        |rows, part| {
            kinds = kinds.or(std::mem::take(&mut part.kinds));
            for (total, part) in totals[rows].iter_mut().zip(part.totals.drain(..)) {
                *total = part;
            }
            merge_pairs(sums, &mut part.sums);
        },
    )?;
    Ok(kinds)
}

/// Adds `[Σ (y - mean)², number]` of the stored values to their columns.
///
/// The zeros' part is `(n - number) mean²`: where sums of squares would cancel, this
/// does not.
pub fn add_deviations<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    scale: Scale<'_>,
    mean: &[f64],
    sums: &mut [[f64; 2]],
    watch: &Watch,
) -> Result<()> {
    check(&csr, scale, sums.len())?;
    expect_len("means of the columns", mean.len(), csr.n_cols)?;
    add_pairs(csr.n_rows(), sums, watch, |sums, row| {
        let (cols, values, _) = columns_of(&csr, row)?;
        let pair = |y: f64, col: usize| [(y - mean[col]) * (y - mean[col]), 1.0];
        add_row(sums, (cols, values), scale, row, pair);
        Ok(())
    })
}

fn check<T: Real, I: Index>(csr: &Csr<'_, T, I>, scale: Scale<'_>, n_sums: usize) -> Result<()> {
    if let Scale::Log1p(factors) = scale {
        expect_len("factors of the rows", factors.len(), csr.n_rows())?;
    }
    expect_len("sums of the columns", n_sums, csr.n_cols)
}

fn total<T: Real>(values: &[T]) -> f64 {
    values.iter().map(|x| x.real()).sum()
}

fn add_row<T: Real, I: Index>(
    sums: &mut [[f64; 2]],
    row: (&[I], &[T]),
    scale: Scale<'_>,
    at: usize,
    pair: impl Fn(f64, usize) -> [f64; 2],
) {
    match scale {
        Scale::Stored => add_scaled(sums, row, |x| x, pair),
        Scale::Expm1(log_base) => add_scaled(sums, row, |x| (x * log_base).exp_m1(), pair),
        Scale::Log1p(factors) => add_scaled(sums, row, |x| (x * factors[at]).ln_1p(), pair),
        Scale::Share => {
            // A row without counts has stored zeros at most.
            let whole = 1.0 / total(row.1).max(f64::MIN_POSITIVE);
            add_scaled(sums, row, |x| x * whole, pair);
        }
    }
}

fn add_scaled<T: Real, I: Index>(
    sums: &mut [[f64; 2]],
    (cols, values): (&[I], &[T]),
    scaled: impl Fn(f64) -> f64,
    pair: impl Fn(f64, usize) -> [f64; 2],
) {
    for (col, x) in cols.iter().zip(values) {
        let [a, b] = pair(scaled(x.real()), col.at());
        let sum = &mut sums[col.at()];
        sum[0] += a;
        sum[1] += b;
    }
}
