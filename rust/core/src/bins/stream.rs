//! Rows of a file summed while they are read.
//!
//! A stretch of rows is read, summed and forgotten before the next one. Groups are
//! numbered so that, in a file sorted as Space Ranger sorts it, few of them are open at
//! once: a group is finished when no later row belongs to it or to one before it. The
//! sums of open groups go into the next stretch as if they were rows, before all others,
//! so the order of additions, and with it every bit of the answer, is that of
//! [`super::sum_groups`]. Any order of rows is summed right; a bad one only takes memory.

use rayon::prelude::*;

use super::{Count, Groups, Store, Sums, check_columns};
use crate::csr::Csr;
use crate::error::{Result, expect_len};
use crate::h5::{Bits, Dataset, Kind, Target};
use crate::{Error, Watch};

/// Rows between two places where a stretch may end.
const STEP: usize = 4096;

/// A sparse matrix, rows compressed, whose values and columns lie in a file.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// Stored values.
    pub data: &'a Dataset,
    /// Column of each.
    pub indices: &'a Dataset,
    /// Where each row starts in the two above; one more than there are rows.
    pub indptr: &'a [i64],
    /// Number of columns.
    pub n_cols: usize,
    /// Whether a value below zero is a fault of the file.
    pub counts: bool,
    /// Values of a stretch, unless more are carried over from the one before.
    pub stretch: usize,
}

/// Sums that room is asked for at once; of more, the room grows.
const MOST_ROOM: usize = 1 << 28;

const INTEGER: Target = Target::Integer { signed: true };

/// The rows that are summed together, with the sums of open groups as the first of them.
struct Stretch<T> {
    data: Vec<T>,
    indices: Vec<i32>,
    indptr: Vec<i32>,
}

/// Sums the rows of a stored matrix that share a group; group −1 belongs to none.
///
/// Floating-point values must be summed as float64, lest carried sums be rounded.
pub fn sum_stored<T: Count + Bits + PartialOrd>(
    matrix: Stored<'_>,
    group_of_row: &[i64],
    n_groups: usize,
    watch: &Watch,
) -> Result<Sums<T>> {
    matrix.check(group_of_row)?;
    let lowest = lowest_to_come(group_of_row, n_groups)?;
    let n_rows = group_of_row.len();
    let mut store = Store::with_bound(matrix.data.len().min(MOST_ROOM), n_groups);
    let (mut open, mut carried) = (Store::with_bound(0, 0), Store::with_bound(0, 0));
    let mut stretch = Stretch::new();
    let (mut row, mut done) = (0, 0);
    while row < n_rows {
        let (_, carry) = carried.size();
        let end = matrix.end_of_stretch(row, matrix.stretch.max(2 * carry));
        if group_of_row[row..end].iter().all(|&g| g < 0) {
            row = end;
            continue;
        }
        stretch.read(matrix, carried.sums(), row..end, watch)?;
        let csr = stretch.csr(matrix.n_cols);
        let rows = group_of_row[row..end].iter();
        let numbered = rows.map(|group| (group - done as i64).max(-1));
        let numbers: Vec<_> = (0..carried.size().0 as i64).chain(numbered).collect();
        let high = numbers.iter().max().map_or(0, |group| group + 1) as usize;
        let groups = Groups::of(&numbers, high)?;
        let finished = (lowest[end.div_ceil(STEP)] - done).min(high);
        store.add_sums(csr, &groups, 0..finished, watch)?;
        open.clear();
        open.add_sums(csr, &groups, finished..high, &Watch::default())?;
        std::mem::swap(&mut open, &mut carried);
        (row, done) = (end, done + finished);
    }
    let mut sums = store.finish();
    sums.indptr.resize(n_groups + 1, sums.data.len() as i64);
    Ok(sums)
}

/// For each step of rows, the lowest group of all rows from there on.
fn lowest_to_come(group_of_row: &[i64], n_groups: usize) -> Result<Vec<usize>> {
    let mut lowest = vec![n_groups; group_of_row.len().div_ceil(STEP) + 1];
    for (step, groups) in group_of_row.chunks(STEP).enumerate().rev() {
        let outside = |g: &&i64| **g < -1 || **g >= n_groups as i64;
        if let Some(&found) = groups.iter().find(outside) {
            let (what, bound) = ("group of a row", n_groups);
            return Err(Error::Index { what, bound, found });
        }
        let here = groups.iter().filter(|&&g| g >= 0).min();
        lowest[step] = here.map_or(n_groups, |&g| g as usize).min(lowest[step + 1]);
    }
    Ok(lowest)
}

impl Stored<'_> {
    fn check(&self, group_of_row: &[i64]) -> Result<()> {
        let (n, indptr) = (self.data.len(), self.indptr);
        check_columns(self.n_cols)?;
        expect_len("indices of a stored matrix", self.indices.len(), n)?;
        expect_len(
            "indptr of a stored matrix",
            indptr.len(),
            group_of_row.len() + 1,
        )?;
        let rises = indptr.windows(2).all(|pair| pair[0] <= pair[1]);
        if indptr[0] == 0 && rises && indptr[indptr.len() - 1] == n as i64 {
            return Ok(());
        }
        let expected = format!("values that rise from 0 to {n}");
        Err(self
            .data
            .bad("indptr beside the values", &expected, "others"))
    }

    /// Fills `out` with values from `start` on.
    fn read_counts<T: Count + Bits + PartialOrd>(
        &self,
        start: usize,
        out: &mut [T],
        watch: &Watch,
    ) -> Result<()> {
        let number = self.data.number();
        let (target, below) = match (number.kind, number.size) {
            (Kind::Float, 4) => (Target::Double, None),
            (Kind::Float, _) => (Target::Same, None),
            // A sign is the highest bit.
            _ => (INTEGER, self.counts.then_some(1 << (8 * T::SIZE - 1))),
        };
        let fault = || (self.data).bad("a value", "counts", "negative or infinite counts");
        match self.data.read(start, (target, below), out, watch) {
            // Of a narrower type, another may hold what this one does not.
            Err(Error::Overflow { .. }) if below.is_some() && T::SIZE == 8 => return Err(fault()),
            other => other?,
        }
        let floats = self.counts && below.is_none();
        match floats && out.par_iter().any(|value| *value < T::default()) {
            true => Err(fault()),
            false => Ok(()),
        }
    }

    /// Fills `out` with columns from `start` on; one outside the matrix is a fault of the file.
    fn read_columns(&self, start: usize, out: &mut [i32], watch: &Watch) -> Result<()> {
        let n_cols = self.n_cols;
        match (self.indices).read(start, (INTEGER, Some(n_cols as u64)), out, watch) {
            Err(Error::Overflow { .. }) => {
                let inside = |&&col: &&i32| usize::try_from(col).is_ok_and(|col| col < n_cols);
                let found = out.iter().find(|col| !inside(col)).map(i32::to_string);
                let found = found.unwrap_or_else(|| "one of more than 32 bits".to_owned());
                let expected = format!("numbers in 0..{n_cols}");
                Err(self.indices.bad("a value", &expected, found))
            }
            other => other,
        }
    }

    /// Where a stretch from `row` on ends that has about `most` values.
    fn end_of_stretch(&self, row: usize, most: usize) -> usize {
        let n_rows = self.indptr.len() - 1;
        let full = self.indptr[row].saturating_add(most as i64);
        let end = self.indptr.partition_point(|&start| start < full);
        (end.max(row + STEP) / STEP * STEP).min(n_rows)
    }
}

impl<T: Count + Bits + PartialOrd> Stretch<T> {
    fn new() -> Self {
        Self {
            data: Vec::new(),
            indices: Vec::new(),
            indptr: vec![0],
        }
    }

    /// Takes the sums of open groups as the first rows, then reads rows.
    ///
    /// The memory of the stretch before is used again: touching new memory costs as much
    /// as reading into it.
    fn read(
        &mut self,
        matrix: Stored<'_>,
        open: &Sums<T>,
        rows: std::ops::Range<usize>,
        watch: &Watch,
    ) -> Result<()> {
        let start = matrix.indptr[rows.start];
        let carried = open.indptr[open.indptr.len() - 1] as usize;
        let end = carried + (matrix.indptr[rows.end] - start) as usize;
        if i32::try_from(end).is_err() {
            let (what, dtype) = ("number of values summed at once", "int32");
            return Err(Error::Overflow { what, dtype });
        }
        self.data.resize(end.max(self.data.len()), T::default());
        self.indices.resize(end.max(self.indices.len()), 0);
        self.data[..carried].copy_from_slice(&open.data[..carried]);
        self.indices[..carried].copy_from_slice(&open.indices[..carried]);
        let ends = matrix.indptr[rows.start + 1..=rows.end].iter();
        self.indptr.clear();
        self.indptr
            .extend(open.indptr.iter().map(|&start| start as i32));
        self.indptr
            .extend(ends.map(|end| carried as i32 + (end - start) as i32));
        let (data, indices) = (
            &mut self.data[carried..end],
            &mut self.indices[carried..end],
        );
        matrix.read_counts(start as usize, data, watch)?;
        matrix.read_columns(start as usize, indices, watch)
    }

    /// The rows as a matrix.
    fn csr(&self, n_cols: usize) -> Csr<'_, T, i32> {
        let n = self.indptr[self.indptr.len() - 1] as usize;
        Csr {
            data: &self.data[..n],
            indices: &self.indices[..n],
            indptr: &self.indptr,
            n_cols,
        }
    }
}
