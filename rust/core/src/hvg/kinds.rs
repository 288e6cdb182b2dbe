//! What is stored: number types, and a guard against data of the wrong kind.

use crate::csr::{Csr, Index};
use crate::error::Result;
use crate::simd::with_avx2;

/// Counts from here on are not summed as integers: with smaller ones the squares of a
/// block of rows fit 64 bits.
pub(super) const LARGE: u32 = 1 << 26;

/// A number type that a matrix of counts or log counts comes in.
pub trait Real: Copy + Send + Sync {
    /// The value in double precision; 64-bit integers above 2⁵³ are rounded.
    fn real(self) -> f64;
    /// The value of a count of the kind [`Kinds::exact`] tells of.
    fn count(self) -> u32;
    /// What there is in a row.
    #[doc(hidden)]
    fn look(values: &[Self]) -> Kinds;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Real for $t {
            fn real(self) -> f64 {
                self as f64
            }

            fn count(self) -> u32 {
                self as u32
            }

            fn look(values: &[Self]) -> Kinds {
                with_avx2! {
                    fn bounds(values: &[$t]) -> ($t, $t) {
                        values.iter().fold((0, 0), |(low, high), &x| (low.min(x), high.max(x)))
                    }
                }
                let (low, high) = bounds(values);
                Kinds {
                    negative: low < 0,
                    large: high >= LARGE as $t,
                    ..Kinds::default()
                }
            }
        }
    )*};
}

macro_rules! floats {
    ($($t:ty),*) => {$(
        impl Real for $t {
            fn real(self) -> f64 {
                f64::from(self)
            }

            fn count(self) -> u32 {
                self as u32
            }

            fn look(values: &[Self]) -> Kinds {
                with_avx2! {
                    fn flags(values: &[$t]) -> [bool; 4] {
                        values.iter().fold([false; 4], |[bad, negative, fraction, large], &x| [
                            bad | (x.abs() == <$t>::INFINITY) | (x != x),
                            negative | (x < 0.0),
                            fraction | (x != x as i32 as $t),
                            large | (x >= LARGE as $t),
                        ])
                    }
                }
                let [infinite, negative, fraction, large] = flags(values);
                // What does not fit the integer is large, and may be whole.
                let whole = |x: &$t| !x.is_finite() || *x == x.trunc();
                let fractional = fraction && (!large || !values.iter().all(whole));
                Kinds { infinite, negative, fractional, large, disordered: false }
            }
        }
    )*};
}

integers!(i32, i64);
floats!(f32, f64);

/// What is stored, as far as methods mind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Some value is NaN or infinite.
    pub infinite: bool,
    /// Some value is below zero.
    pub negative: bool,
    /// Some value is not whole.
    pub fractional: bool,
    /// Some value is 2²⁶ or more.
    pub large: bool,
    /// Some row's columns do not ascend strictly: unsorted, or one there twice.
    pub disordered: bool,
}

impl Kinds {
    /// Whether the sums of counts are exact.
    pub fn exact(self) -> bool {
        self == Self::default()
    }

    /// Either's faults.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            infinite: self.infinite | other.infinite,
            negative: self.negative | other.negative,
            fractional: self.fractional | other.fractional,
            large: self.large | other.large,
            disordered: self.disordered | other.disordered,
        }
    }
}

/// A row whose columns lie in the matrix, with what is stored in it.
pub(super) fn row_of<'a, T: Real, I: Index>(
    csr: &Csr<'a, T, I>,
    row: usize,
) -> Result<(&'a [I], &'a [T], Kinds)> {
    let (cols, values, disordered) = columns_of(csr, row)?;
    let kinds = Kinds {
        disordered,
        ..T::look(values)
    };
    Ok((cols, values, kinds))
}

/// A row whose columns lie in the matrix, and whether they do not ascend.
///
/// Where they ascend, the first and the last speak for all.
pub(super) fn columns_of<'a, T: Real, I: Index>(
    csr: &Csr<'a, T, I>,
    row: usize,
) -> Result<(&'a [I], &'a [T], bool)> {
    let range = csr.indptr[row].at()..csr.indptr[row + 1].at();
    if let (Some(cols), Some(values)) = (csr.indices.get(range.clone()), csr.data.get(range)) {
        let inside = |col: Option<&I>| col.is_none_or(|col| col.at() < csr.n_cols);
        if ascending(cols) && inside(cols.first()) && inside(cols.last()) {
            return Ok((cols, values, false));
        }
    }
    let (cols, values) = csr.row_checked(row)?;
    Ok((cols, values, true))
}

fn ascending<I: Index>(cols: &[I]) -> bool {
    let after = cols.get(1..).unwrap_or_default();
    (cols.iter().zip(after)).fold(true, |ok, (a, b)| ok & (a < b))
}
