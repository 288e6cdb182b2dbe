//! Gene rows of a batch: dense from sparse, dense from dense, sparse from sparse.
//!
//! Matrices may be memory maps of files, so a row that is not in memory is waited
//! for here, on the pool's threads, never while the interpreter is held.

use rayon::prelude::*;

use crate::csr::{Csr, Index};
use crate::error::{Result, expect_len};
use crate::{Error, Watch};

/// Rows that one unit of parallel work holds.
const MIN_ROWS: usize = 64;

fn check_rows(rows: &[i64], bound: usize) -> Result<()> {
    let bad_row = |&&row: &&i64| row < 0 || row >= bound as i64;
    match rows.iter().find(bad_row) {
        Some(&found) => Err(Error::Index {
            what: "row",
            bound,
            found,
        }),
        None => Ok(()),
    }
}

/// Writes the chosen rows of a sparse matrix densely into `out` (rows × columns).
///
/// Values that share a row and a column are added.
pub fn gather<I: Index>(
    csr: Csr<'_, f32, I>,
    rows: &[i64],
    out: &mut [f32],
    watch: &Watch,
) -> Result<()> {
    watch.check()?;
    let n_cols = csr.n_cols;
    expect_len("out", out.len(), rows.len() * n_cols)?;
    check_rows(rows, csr.n_rows())?;
    if n_cols == 0 {
        return Ok(());
    }
    (out.par_chunks_mut(n_cols).zip(rows))
        .with_min_len(MIN_ROWS)
        .try_for_each(|(out, &row)| {
            out.fill(0.0);
            let (cols, values) = csr.row_checked(row as usize)?;
            for (col, value) in cols.iter().zip(values) {
                out[col.at()] += value;
            }
            Ok(())
        })
}

/// Copies the chosen rows of a dense matrix of `n_cols` columns into `out`.
pub fn gather_dense<T: Copy + Send + Sync>(
    matrix: &[T],
    n_cols: usize,
    rows: &[i64],
    out: &mut [T],
    watch: &Watch,
) -> Result<()> {
    watch.check()?;
    expect_len("out", out.len(), rows.len() * n_cols)?;
    if n_cols == 0 {
        return Ok(());
    }
    check_rows(rows, matrix.len() / n_cols)?;
    (out.par_chunks_mut(n_cols).zip(rows))
        .with_min_len(MIN_ROWS)
        .for_each(|(out, &row)| {
            let start = row as usize * n_cols;
            out.copy_from_slice(&matrix[start..start + n_cols]);
        });
    Ok(())
}

/// A column's number or a stored value, of the types that gene files have.
pub trait Stored: Copy + Send + Sync {
    /// As a column's number.
    fn index(self) -> i32;
    /// As a value.
    fn value(self) -> f32;
}

macro_rules! stored {
    ($($t:ty),*) => {$(
        impl Stored for $t {
            fn index(self) -> i32 {
                self as i32
            }
            fn value(self) -> f32 {
                self as f32
            }
        }
    )*};
}
stored!(u8, u16, u32, i32, i64, f32);

/// Copies the chosen rows of a sparse matrix, end to end, into `indices` and `values`.
///
/// `ends` are the rows' ends in these two, as their lengths in `indptr` imply.
pub fn gather_sparse<C: Stored, V: Stored>(
    (indptr, columns, stored): (&[i64], &[C], &[V]),
    rows: &[i64],
    ends: &[i64],
    (indices, values): (&mut [i32], &mut [f32]),
    watch: &Watch,
) -> Result<()> {
    watch.check()?;
    check_rows(rows, indptr.len().saturating_sub(1))?;
    expect_len("ends of rows", ends.len(), rows.len())?;
    expect_len("values", values.len(), indices.len())?;
    let mut work = Vec::with_capacity(rows.len());
    let (mut indices, mut values, mut start) = (indices, values, 0);
    for (&row, &end) in rows.iter().zip(ends) {
        let (from, from_values) = stored_row((indptr, columns, stored), row as usize)?;
        expect_len("a gene row", (end - start) as usize, from.len())?;
        if from.len() > indices.len() {
            expect_len("indices", indices.len(), from.len())?;
        }
        let (to, rest) = indices.split_at_mut(from.len());
        let (to_values, rest_values) = values.split_at_mut(from.len());
        work.push((from, from_values, to, to_values));
        (indices, values, start) = (rest, rest_values, end);
    }
    work.into_par_iter()
        .with_min_len(MIN_ROWS)
        .for_each(|(columns, stored, to, to_values)| {
            to.iter_mut()
                .zip(columns)
                .for_each(|(to, column)| *to = column.index());
            to_values
                .iter_mut()
                .zip(stored)
                .for_each(|(to, value)| *to = value.value());
        });
    Ok(())
}

fn stored_row<'a, C, V>(
    (indptr, columns, stored): (&[i64], &'a [C], &'a [V]),
    row: usize,
) -> Result<(&'a [C], &'a [V])> {
    let range = indptr[row] as usize..indptr[row + 1] as usize;
    match (columns.get(range.clone()), stored.get(range)) {
        (Some(columns), Some(stored)) => Ok((columns, stored)),
        _ => Err(Error::Index {
            what: "indptr of gene rows",
            bound: stored.len(),
            found: indptr[row + 1],
        }),
    }
}
