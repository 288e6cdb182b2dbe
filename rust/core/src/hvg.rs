//! Sums per gene that the highly variable genes are chosen from.
//!
//! A kernel adds what a stretch of rows holds to sums that its caller owns, so that
//! a file can be taken stretch by stretch. Whole counts are summed as integers.
//! Floating-point sums run over fixed blocks of [`ROW_BLOCK`](crate::csr::ROW_BLOCK)
//! rows, and the blocks are added in order: the answer is the same bit for bit for
//! any number of threads, and for any stretches that are multiples of a block.

mod blocks;
mod counts;
mod excess;
mod kinds;
mod loess;
mod pearson;
mod values;

pub use counts::{CountSums, add_counts};
pub use excess::add_excess;
pub use kinds::{Kinds, Real};
pub use loess::{Fit, loess};
pub use pearson::{Model, add_residuals, zero_residuals};
pub use values::{Scale, add_deviations, add_values};
