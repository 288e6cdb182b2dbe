//! Sums per gene that the highly variable genes are chosen from.
//!
//! Floating-point sums run over fixed blocks of [`ROW_BLOCK`] rows, one block a
//! thread, and the blocks are merged in order, so that the answer is the same
//! bit for bit for any number of threads.
//!
//! [`pearson`] computes the variance of analytic Pearson residuals (Lause et
//! al. 2021) without visiting the zeros. With row sums `s_c`, column sums `s_g`
//! and total `S`, `mu = s_c s_g / S` and `q = mu + mu²/theta`, the residual of a
//! count `x` is `r = (x - mu)/√q`, and that of a zero, `r0 = -mu/√q`, depends on
//! `s_c` and `s_g` alone. So each gene's sums of `r` and `r²` are what they
//! would be were all its counts zero (a table over the few distinct `s_c` and
//! `s_g`), plus `r - r0` and `r² - r0²` over the stored counts.

use rayon::prelude::*;

use crate::csr::{Csr, Index, ROW_BLOCK};
use crate::error::{Result, expect_len};
use crate::{Error, Watch};

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

/// What kinds of value are stored: a guard against data of the wrong kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    /// NaN or infinite.
    pub infinite: bool,
    /// Below zero.
    pub negative: bool,
    /// Not whole.
    pub fractional: bool,
}

/// Looks at every stored value once.
pub fn kinds<T: Real>(data: &[T], watch: &Watch) -> Result<Kinds> {
    (data.par_chunks(1 << 16))
        .map(|chunk| {
            watch.check()?;
            Ok(chunk.iter().fold(Kinds::default(), |kinds, x| {
                let x = x.real();
                Kinds {
                    infinite: kinds.infinite | !x.is_finite(),
                    negative: kinds.negative | (x < 0.0),
                    fractional: kinds.fractional | (x != x.trunc()),
                }
            }))
        })
        .try_reduce(Kinds::default, |a, b| {
            Ok(Kinds {
                infinite: a.infinite | b.infinite,
                negative: a.negative | b.negative,
                fractional: a.fractional | b.fractional,
            })
        })
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
    let value = |row: usize, x: T| match scale {
        Scale::Stored => x.real(),
        Scale::Expm1(log_base) => (x.real() * log_base).exp_m1(),
        Scale::Rows(factors) => x.real() * factors[row],
    };
    let sums = column_sums(csr, watch, |row, _, x| [value(row, x), 1.0])?;
    let sum: Vec<f64> = sums.iter().map(|s| s[0]).collect();
    let mean: Vec<f64> = sum.iter().map(|s| s / n).collect();
    let squares = column_sums(csr, watch, |row, col, x| {
        let d = value(row, x) - mean[col];
        [d * d, 0.0]
    })?;
    let m2 = (squares.iter().zip(&sums).zip(&mean))
        .map(|((square, sum), mean)| square[0] + (n - sum[1]) * mean * mean)
        .collect();
    Ok(Moments { sum, m2 })
}

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
pub fn pearson<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    theta: f64,
    clip: f64,
    watch: &Watch,
) -> Result<Pearson> {
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
    let csr = csr.checked(watch)?;
    let row_sum = totals(csr);
    let sums = column_sums(csr, watch, |_, _, x| [x.real(), x.real() * x.real()])?;
    let (col_sum, squares): (Vec<f64>, Vec<f64>) = sums.iter().map(|s| (s[0], s[1])).unzip();
    let total: f64 = col_sum.iter().sum();
    let residual = Residual { theta, clip };

    let stored = column_sums(csr, watch, |row, col, x| {
        residual.beyond_zero(x.real(), row_sum[row] * col_sum[col] / total)
    })?;
    let zeros = ZeroTable::new(&row_sum, total, residual);
    let zeros = zeros.sums(&col_sum, watch)?;
    let n = csr.n_rows() as f64;
    let variance = (stored.iter().zip(&zeros).zip(&col_sum))
        .map(|((stored, zero), &col_sum)| {
            if col_sum == 0.0 {
                return 0.0;
            }
            let mean = (zero[0] + stored[0]) / n;
            (zero[1] + stored[1]) / n - mean * mean
        })
        .collect();
    Ok(Pearson {
        sum: col_sum,
        squares,
        variance,
    })
}

/// Two sums a column over the stored values: of what `term(row, col, x)` gives.
fn column_sums<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    watch: &Watch,
    term: impl Fn(usize, usize, T) -> [f64; 2] + Sync,
) -> Result<Vec<[f64; 2]>> {
    let blocks: Vec<usize> = (0..csr.n_rows()).step_by(ROW_BLOCK).collect();
    let partial = (blocks.par_iter())
        .map(|&first| {
            watch.check()?;
            let mut sums = vec![[0.0; 2]; csr.n_cols];
            for row in first..(first + ROW_BLOCK).min(csr.n_rows()) {
                let (cols, values) = csr.row(row);
                for (col, &x) in cols.iter().zip(values) {
                    let [a, b] = term(row, col.at(), x);
                    let sum = &mut sums[col.at()];
                    sum[0] += a;
                    sum[1] += b;
                }
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

/// A Pearson residual under a negative binomial of overdispersion `theta`,
/// clipped to ± `clip`.
#[derive(Clone, Copy)]
struct Residual {
    theta: f64,
    clip: f64,
}

impl Residual {
    fn of(self, x: f64, mu: f64) -> f64 {
        let r = (x - mu) / (mu + mu * mu / self.theta).sqrt();
        r.clamp(-self.clip, self.clip)
    }

    /// `[r - r0, r² - r0²]`: what a count adds to what a zero gave.
    fn beyond_zero(self, x: f64, mu: f64) -> [f64; 2] {
        if x == 0.0 {
            return [0.0; 2];
        }
        let scale = 1.0 / (mu + mu * mu / self.theta).sqrt();
        let (r, r0) = ((x - mu) * scale, -mu * scale);
        if r <= self.clip && r0 >= -self.clip {
            return [x * scale, x * (x - 2.0 * mu) * scale * scale];
        }
        let (r, r0) = (self.of(x, mu), self.of(0.0, mu));
        [r - r0, r * r - r0 * r0]
    }
}

/// Each distinct row sum with the number of rows that have it.
struct ZeroTable {
    rows: Vec<(f64, f64)>,
    total: f64,
    residual: Residual,
}

impl ZeroTable {
    fn new(row_sum: &[f64], total: f64, residual: Residual) -> Self {
        let mut sorted: Vec<f64> = row_sum.iter().copied().filter(|&s| s != 0.0).collect();
        sorted.par_sort_unstable_by(f64::total_cmp);
        let rows = (sorted.chunk_by(|a, b| a == b))
            .map(|equal| (equal[0], equal.len() as f64))
            .collect();
        Self {
            rows,
            total,
            residual,
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
        let mut sums = [0.0; 2];
        for &(row_sum, count) in &self.rows {
            let r = self.residual.of(0.0, row_sum * col_sum / self.total);
            sums[0] += count * r;
            sums[1] += count * r * r;
        }
        sums
    }
}
