//! What counts have above a bound of their gene's, for the clipped sums of seurat_v3.
//!
//! Few counts lie above it, so the clipped sums are the exact sums less the excess,
//! and the pass only compares.

use super::blocks::add_pairs;
use super::kinds::{Real, columns_of};
use crate::Watch;
use crate::csr::{Csr, Index};
use crate::error::{Result, expect_len};

/// Adds `[Σ (x - c), Σ (x² - c²)]` of the values above their column's bound `c`.
pub fn add_excess<T: Real, I: Index>(
    csr: Csr<'_, T, I>,
    bounds: &[f64],
    sums: &mut [[f64; 2]],
    watch: &Watch,
) -> Result<()> {
    expect_len("bounds of the columns", bounds.len(), csr.n_cols)?;
    expect_len("sums of the columns", sums.len(), csr.n_cols)?;
    add_pairs(csr.n_rows(), sums, watch, |sums, row| {
        let (cols, values, _) = columns_of(&csr, row)?;
        for (col, x) in cols.iter().zip(values) {
            let (x, bound) = (x.real(), bounds[col.at()]);
            if x > bound {
                let sum = &mut sums[col.at()];
                sum[0] += x - bound;
                sum[1] += (x - bound) * (x + bound);
            }
        }
        Ok(())
    })
}
