//! Compressed sparse rows, borrowed from whoever owns them.
//!
//! scipy stores indices as 32 or 64 bits and counts in any number type; two
//! small traits cover them, so each kernel is written once.

use rayon::prelude::*;

use crate::error::{Result, expect_len};
use crate::{Error, Watch};

/// How many rows one unit of parallel work holds, and the block over which
/// floating-point sums run before they are merged in order: fixed, so that the
/// answer depends on neither the number of threads nor the chunks of a file.
pub const ROW_BLOCK: usize = 4096;

/// An index type of scipy's: `i32` or `i64`.
pub trait Index: Copy + PartialOrd + Send + Sync {
    /// The index as an address; a negative one becomes larger than any array.
    fn at(self) -> usize;
}

impl Index for i32 {
    fn at(self) -> usize {
        self as isize as usize
    }
}

impl Index for i64 {
    fn at(self) -> usize {
        self as usize
    }
}

/// A sparse matrix, rows compressed: the three arrays of scipy's `csr_matrix`.
#[derive(Debug, Clone, Copy)]
pub struct Csr<'a, T, I> {
    /// Stored values.
    pub data: &'a [T],
    /// Column of each stored value.
    pub indices: &'a [I],
    /// Where each row starts in the two above; one more than there are rows.
    pub indptr: &'a [I],
    /// Number of columns.
    pub n_cols: usize,
}

impl<'a, T: Copy + Sync, I: Index> Csr<'a, T, I> {
    /// Checks the three arrays against each other, once, so that kernels need not.
    pub fn checked(self, watch: &Watch) -> Result<Self> {
        expect_len(
            "indices of a CSR matrix",
            self.indices.len(),
            self.data.len(),
        )?;
        self.check_indptr()?;
        self.indices.par_chunks(1 << 20).try_for_each(|chunk| {
            watch.check()?;
            let largest = chunk.iter().map(|i| i.at()).max().unwrap_or(0);
            if chunk.is_empty() || largest < self.n_cols {
                return Ok(());
            }
            Err(Error::Index {
                what: "column of a CSR matrix",
                bound: self.n_cols,
                found: largest as i64,
            })
        })?;
        Ok(self)
    }

    fn check_indptr(&self) -> Result<()> {
        let (first, last) = (self.indptr.first(), self.indptr.last());
        let (first, last) = (first.map_or(1, |i| i.at()), last.map_or(0, |i| i.at()));
        if first != 0 {
            expect_len("first indptr of a CSR matrix", first, 0)?;
        }
        expect_len("last indptr of a CSR matrix", last, self.data.len())?;
        match self.indptr.windows(2).position(|w| w[0].at() > w[1].at()) {
            None => Ok(()),
            Some(row) => Err(Error::Value {
                what: "indptr of a CSR matrix",
                expected: "values that never decrease".into(),
                found: format!("a decrease after row {row}"),
            }),
        }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.indptr.len() - 1
    }

    /// Number of stored values in a row.
    pub fn row_nnz(&self, row: usize) -> usize {
        self.indptr[row + 1].at() - self.indptr[row].at()
    }

    /// Columns and values of one row.
    pub fn row(&self, row: usize) -> (&'a [I], &'a [T]) {
        let range = self.indptr[row].at()..self.indptr[row + 1].at();
        (&self.indices[range.clone()], &self.data[range])
    }

    /// [`Csr::row`] of a matrix that was never checked as a whole.
    pub fn row_checked(&self, row: usize) -> Result<(&'a [I], &'a [T])> {
        let range = self.indptr[row].at()..self.indptr[row + 1].at();
        let (cols, values) = (self.indices.get(range.clone()), self.data.get(range));
        let (Some(cols), Some(values)) = (cols, values) else {
            return Err(Error::Value {
                what: "indptr of a CSR matrix",
                expected: "values that never decrease and end in the data".into(),
                found: format!("another range for row {row}"),
            });
        };
        match cols.iter().map(|col| col.at()).max() {
            Some(largest) if largest >= self.n_cols => Err(Error::Index {
                what: "column of a CSR matrix",
                bound: self.n_cols,
                found: largest as i64,
            }),
            _ => Ok((cols, values)),
        }
    }
}
