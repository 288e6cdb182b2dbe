//! Variance of analytic Pearson residuals (Lause et al. 2021) without visiting the zeros.
//!
//! With row sums `s_c`, column sums `s_g` and total `S`, `mu = s_c s_g / S` and
//! `q = mu + mu²/theta`, the residual of a count `x` is `r = (x - mu)/√q`, and that
//! of a zero, `r0 = -mu/√q`, depends on `s_c` and `s_g` alone. So each gene's sums of
//! `r` and `r²` are what they would be were all its counts zero (a table over the
//! few distinct `s_c` and `s_g`), plus `r - r0` and `r² - r0²` over the stored
//! counts. Both loops work on runs of numbers that fit the nearest cache, so that
//! the square roots and divisions are done several at a time.

use rayon::prelude::*;

use super::blocks::add_pairs;
use super::kinds::{Real, columns_of};
use crate::csr::{Csr, Index};
use crate::error::{Result, expect_len};
use crate::simd::with_avx2;
use crate::{Error, Watch};

/// Numbers in a run.
const RUN: usize = 128;

/// A negative binomial of overdispersion `theta`, its residuals clipped to ± `clip`.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    theta: f64,
    clip: f64,
    total: f64,
}

impl Model {
    /// A model of counts whose sum is `total`.
    pub fn new(theta: f64, clip: f64, total: f64) -> Result<Self> {
        for (what, value) in [("theta", theta), ("clip", clip)] {
            if value.is_nan() || value <= 0.0 {
                let (expected, found) = ("a positive number".into(), value.to_string());
                return Err(Error::Value {
                    what,
                    expected,
                    found,
                });
            }
        }
        Ok(Self { theta, clip, total })
    }
}

/// Adds `[Σ (r - r0), Σ (r² - r0²)]` of the stored counts to their columns.
///
/// `row_sums` and `col_sums` are those of all counts. Columns must not repeat in a row;
/// a row without counts has residuals of 0.
pub fn add_residuals<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    row_sums: &[f64],
    col_sums: &[f64],
    model: Model,
    sums: &mut [[f64; 2]],
    watch: &Watch,
) -> Result<()> {
    expect_len("sums of the rows", row_sums.len(), csr.n_rows())?;
    expect_len("sums of the columns", col_sums.len(), csr.n_cols)?;
    expect_len("sums of residuals", sums.len(), csr.n_cols)?;
    add_pairs(csr.n_rows(), sums, watch, |sums, row| {
        let (cols, values, _) = columns_of(&csr, row)?;
        model.add_row((cols, values), col_sums, row_sums[row] / model.total, sums);
        Ok(())
    })
}

impl Model {
    fn add_row<T: Real, I: Index>(
        self,
        (cols, values): (&[I], &[T]),
        col_sums: &[f64],
        share: f64,
        sums: &mut [[f64; 2]],
    ) {
        let mut run = Run::default();
        for (cols, values) in cols.chunks(RUN).zip(values.chunks(RUN)) {
            for (i, (col, x)) in cols.iter().zip(values).enumerate() {
                run.x[i] = x.real();
                // A stored zero of a row without counts has none: it shall add 0, not NaN.
                run.mu[i] = (share * col_sums[col.at()]).max(f64::MIN_POSITIVE);
            }
            beyond_zero(&mut run, cols.len(), self);
            for (i, col) in cols.iter().enumerate() {
                let sum = &mut sums[col.at()];
                sum[0] += run.first[i];
                sum[1] += run.second[i];
            }
        }
    }
}

/// Counts, their expectations, and what they add to a column's two sums.
struct Run {
    x: [f64; RUN],
    mu: [f64; RUN],
    first: [f64; RUN],
    second: [f64; RUN],
}

impl Default for Run {
    fn default() -> Self {
        let zeros = [0.0; RUN];
        Self {
            x: zeros,
            mu: zeros,
            first: zeros,
            second: zeros,
        }
    }
}

/// `min` of numbers that are not NaN: one instruction, where `f64::min` is three.
#[inline(always)]
fn least(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

/// `max` of numbers that are not NaN.
#[inline(always)]
fn greatest(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

with_avx2! {
    /// Residuals of the first `n` counts of a run, less those of zeros.
    fn beyond_zero(run: &mut Run, n: usize, model: Model) {
        let inverse = 1.0 / model.theta;
        let n = n.min(RUN);
        let (x, mu) = (&run.x[..n], &run.mu[..n]);
        let (first, second) = (&mut run.first[..n], &mut run.second[..n]);
        // By index: four slices zipped are not done several at a time.
        for i in 0..n {
            let (x, mu) = (x[i], mu[i]);
            let scale = 1.0 / (mu + mu * mu * inverse).sqrt();
            let r = least(greatest((x - mu) * scale, -model.clip), model.clip);
            let r0 = greatest(-mu * scale, -model.clip);
            first[i] = r - r0;
            second[i] = (r - r0) * (r + r0);
        }
    }
}

with_avx2! {
    /// Residuals of zeros with expectations `share` times the row sums.
    fn residuals_of_zeros(row_sums: &[f64], share: f64, model: Model, out: &mut [f64]) {
        let inverse = 1.0 / model.theta;
        for (&row_sum, r) in row_sums.iter().zip(out) {
            let mu = row_sum * share;
            // -mu/√(mu + mu²/theta), one root and one division.
            *r = -least((mu / (1.0 + mu * inverse)).sqrt(), model.clip);
        }
    }
}

/// For each column, `[Σ r, Σ r²]` were all its counts zero.
///
/// `row_sums` are the distinct sums of rows, and `numbers` how many rows have each.
pub fn zero_residuals(
    row_sums: &[f64],
    numbers: &[f64],
    col_sums: &[f64],
    model: Model,
    watch: &Watch,
) -> Result<Vec<[f64; 2]>> {
    expect_len("numbers of rows", numbers.len(), row_sums.len())?;
    let mut distinct: Vec<f64> = col_sums.iter().copied().filter(|&s| s != 0.0).collect();
    distinct.par_sort_unstable_by(f64::total_cmp);
    distinct.dedup();
    let sums = (distinct.par_iter())
        .map(|&sum| {
            watch.check()?;
            Ok(model.of_zeros(row_sums, numbers, sum / model.total))
        })
        .collect::<Result<Vec<_>>>()?;
    let at = |s: f64| distinct.partition_point(|d| d.total_cmp(&s).is_lt());
    Ok((col_sums.iter())
        .map(|&s| if s == 0.0 { [0.0; 2] } else { sums[at(s)] })
        .collect())
}

impl Model {
    fn of_zeros(self, row_sums: &[f64], numbers: &[f64], share: f64) -> [f64; 2] {
        let (mut sums, mut r) = ([0.0; 2], [0.0; RUN]);
        for (row_sums, numbers) in row_sums.chunks(RUN).zip(numbers.chunks(RUN)) {
            residuals_of_zeros(row_sums, share, self, &mut r);
            for (r, number) in r.iter().zip(numbers) {
                sums[0] += number * r;
                sums[1] += number * r * r;
            }
        }
        sums
    }
}
