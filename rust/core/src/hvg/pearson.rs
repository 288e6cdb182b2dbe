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

use super::{Real, column_sums, column_sums_of, totals};
use crate::csr::{Csr, Index};
use crate::error::Result;
use crate::simd::with_avx2;
use crate::{Error, Watch};

/// Numbers in a run.
const RUN: usize = 128;

/// What [`pearson`] finds of each column.
#[derive(Debug)]
pub struct Pearson {
    /// Sum of the counts: exact below 2⁵³.
    pub sum: Vec<f64>,
    /// Sum of their squares: exact below 2⁵³.
    pub squares: Vec<f64>,
    /// Population variance over the rows of the clipped residuals; 0 for a
    /// column whose counts sum to zero.
    pub variance: Vec<f64>,
}

/// Variance of the clipped Pearson residuals of each column, and its moments.
///
/// A row without counts has residuals of 0. Columns must not repeat in a row.
pub fn pearson<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    theta: f64,
    clip: f64,
    watch: &Watch,
) -> Result<Pearson> {
    positive("theta", theta)?;
    positive("clip", clip)?;
    let csr = csr.checked(watch)?;
    let row_sum = totals(csr);
    let sums = column_sums_of(csr, watch, |_, _, x| [x, x * x])?;
    let (col_sum, squares): (Vec<f64>, Vec<f64>) = sums.iter().map(|s| (s[0], s[1])).unzip();
    let total: f64 = col_sum.iter().sum();
    let model = Model { theta, clip };

    let stored = column_sums(csr, watch, |sums, row| {
        model.add_stored(csr.row(row), &col_sum, row_sum[row] / total, sums);
    })?;
    let zeros = Zeros::new(&row_sum, total, model).sums(&col_sum, watch)?;
    let n = csr.n_rows() as f64;
    let variance = (stored.iter().zip(&zeros).zip(&col_sum))
        .map(|((stored, zero), &col_sum)| {
            if col_sum == 0.0 {
                return 0.0;
            }
            let mean = (zero[0] + stored[0]) / n;
            let variance = (zero[1] + stored[1]) / n - mean * mean;
            // Less than the rounding of its parts: the gene follows the model exactly.
            let rounding = 32.0 * f64::EPSILON * zero[1] / n;
            if variance < rounding { 0.0 } else { variance }
        })
        .collect();
    Ok(Pearson {
        sum: col_sum,
        squares,
        variance,
    })
}

fn positive(what: &'static str, value: f64) -> Result<()> {
    if value > 0.0 {
        return Ok(());
    }
    Err(Error::Value {
        what,
        expected: "a positive number".into(),
        found: value.to_string(),
    })
}

/// A negative binomial of overdispersion `theta`, its residuals clipped to ± `clip`.
#[derive(Clone, Copy)]
struct Model {
    theta: f64,
    clip: f64,
}

impl Model {
    /// Adds `[r - r0, r² - r0²]` of a row's counts to the sums of their columns.
    fn add_stored<T: Real, I: Index>(
        self,
        (cols, values): (&[I], &[T]),
        col_sum: &[f64],
        share: f64,
        sums: &mut [[f64; 2]],
    ) {
        let mut run = Run::default();
        for (cols, values) in cols.chunks(RUN).zip(values.chunks(RUN)) {
            for (i, (col, x)) in cols.iter().zip(values).enumerate() {
                run.x[i] = x.real();
                // A stored zero of a row without counts has none: it shall add 0, not NaN.
                run.mu[i] = (share * col_sum[col.at()]).max(f64::MIN_POSITIVE);
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
            // Not `clamp`, whose check of its bounds would keep this scalar.
            let r = ((x - mu) * scale).min(model.clip).max(-model.clip);
            let r0 = (-mu * scale).max(-model.clip);
            first[i] = r - r0;
            second[i] = (r - r0) * (r + r0);
        }
    }
}

with_avx2! {
    /// Residuals of zeros with expectations `share` times the row sums.
    fn zero_residuals(row_sums: &[f64], share: f64, model: Model, out: &mut [f64]) {
        let inverse = 1.0 / model.theta;
        for (&row_sum, r) in row_sums.iter().zip(out) {
            let mu = row_sum * share;
            // -mu/√(mu + mu²/theta), one root and one division.
            *r = -(mu / (1.0 + mu * inverse)).sqrt().min(model.clip);
        }
    }
}

/// Each distinct row sum, and the number of rows that have it.
struct Zeros {
    row_sums: Vec<f64>,
    counts: Vec<f64>,
    total: f64,
    model: Model,
}

impl Zeros {
    fn new(row_sum: &[f64], total: f64, model: Model) -> Self {
        let mut sorted: Vec<f64> = row_sum.iter().copied().filter(|&s| s != 0.0).collect();
        sorted.par_sort_unstable_by(f64::total_cmp);
        let (row_sums, counts) = (sorted.chunk_by(|a, b| a == b))
            .map(|equal| (equal[0], equal.len() as f64))
            .unzip();
        Self {
            row_sums,
            counts,
            total,
            model,
        }
    }

    /// For each column, the sums of `r` and `r²` were all its counts zero.
    fn sums(&self, col_sum: &[f64], watch: &Watch) -> Result<Vec<[f64; 2]>> {
        let mut distinct: Vec<f64> = col_sum.iter().copied().filter(|&s| s != 0.0).collect();
        distinct.par_sort_unstable_by(f64::total_cmp);
        distinct.dedup();
        let sums = (distinct.par_iter())
            .map(|&s| {
                watch.check()?;
                Ok(self.sum(s))
            })
            .collect::<Result<Vec<_>>>()?;
        let at = |s: f64| distinct.partition_point(|d| d.total_cmp(&s).is_lt());
        Ok((col_sum.iter())
            .map(|&s| if s == 0.0 { [0.0; 2] } else { sums[at(s)] })
            .collect())
    }

    fn sum(&self, col_sum: f64) -> [f64; 2] {
        let (mut sums, mut r) = ([0.0; 2], [0.0; RUN]);
        let share = col_sum / self.total;
        for (row_sums, counts) in self.row_sums.chunks(RUN).zip(self.counts.chunks(RUN)) {
            zero_residuals(row_sums, share, self.model, &mut r);
            for (r, count) in r.iter().zip(counts) {
                sums[0] += count * r;
                sums[1] += count * r * r;
            }
        }
        sums
    }
}
