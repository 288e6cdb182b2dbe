//! Sums of rows, in canonical form without sorting.
//!
//! Each thread keeps one dense row of sums and a bitmap of the columns it touched:
//! adding a count is one store and one bit, and reading the bitmap gives the columns
//! already sorted. The sums of a few hundred groups make a piece; pieces are copied into
//! the result and used again, so that only the result itself is memory newly touched.

use std::ops::Range;

use rayon::prelude::*;

use super::{Count, Sums};
use crate::csr::{Csr, Index};
use crate::error::Result;
use crate::simd::with_avx2;
use crate::{Error, Watch};

/// Groups in a piece, the unit of parallel work.
const PIECE: usize = 256;
/// Pieces that are held before they are copied into the result.
const HELD: usize = 64;

/// The rows of each group, in input order.
pub(super) struct Groups {
    starts: Vec<usize>,
    members: Vec<usize>,
}

impl Groups {
    /// A stable counting sort of rows by group.
    pub(super) fn of(group_of_row: &[i64], n_groups: usize) -> Result<Self> {
        let mut starts = vec![0; n_groups + 1];
        for &group in group_of_row {
            if group < -1 || group >= n_groups as i64 {
                return Err(Error::Index {
                    what: "group of a row",
                    bound: n_groups,
                    found: group,
                });
            }
            if group >= 0 {
                starts[group as usize + 1] += 1;
            }
        }
        for group in 0..n_groups {
            starts[group + 1] += starts[group];
        }
        let mut next = starts.clone();
        let mut members = vec![0; starts[n_groups]];
        for (row, &group) in group_of_row.iter().enumerate() {
            if group >= 0 {
                let slot = &mut next[group as usize];
                members[*slot] = row;
                *slot += 1;
            }
        }
        Ok(Self { starts, members })
    }

    /// The rows of a group.
    fn rows(&self, group: usize) -> &[usize] {
        &self.members[self.starts[group]..self.starts[group + 1]]
    }

    /// The rows of a run of groups.
    fn rows_of(&self, groups: &Range<usize>) -> &[usize] {
        &self.members[self.starts[groups.start]..self.starts[groups.end]]
    }
}

/// Sums as they come in, in memory that is only touched where sums are.
pub(super) struct Store<T> {
    sums: Sums<T>,
    pieces: Vec<Piece<T>>,
}

impl<T: Count> Store<T> {
    /// Room for `bound` sums: zeros that no one has touched yet take no memory.
    pub(super) fn with_bound(bound: usize, n_groups: usize) -> Self {
        let mut indptr = Vec::with_capacity(n_groups + 1);
        indptr.push(0);
        let (data, indices) = (vec![T::default(); bound], vec![0; bound]);
        let pieces = (0..HELD).map(|_| Piece::default()).collect();
        let sums = Sums {
            data,
            indices,
            indptr,
        };
        Self { sums, pieces }
    }

    /// Rows and sums that it has.
    pub(super) fn size(&self) -> (usize, usize) {
        let indptr = &self.sums.indptr;
        (indptr.len() - 1, indptr[indptr.len() - 1] as usize)
    }

    /// The sums so far.
    pub(super) fn sums(&self) -> &Sums<T> {
        &self.sums
    }

    /// Forgets all sums, keeps the memory.
    pub(super) fn clear(&mut self) {
        self.sums.indptr.truncate(1);
    }

    /// Adds a row to the end for each of the groups.
    pub(super) fn add_sums<I: Index>(
        &mut self,
        csr: Csr<'_, T, I>,
        groups: &Groups,
        range: Range<usize>,
        watch: &Watch,
    ) -> Result<()> {
        let end = range.end;
        for first in range.step_by(PIECE * HELD) {
            let starts: Vec<_> = (first..end).step_by(PIECE).take(HELD).collect();
            (self.pieces.par_iter_mut().zip(&starts)).try_for_each_init(
                || Accumulator::new(csr.n_cols),
                |accumulator, (piece, &start)| {
                    watch.check()?;
                    accumulator.sum(csr, groups, start..(start + PIECE).min(end), piece)
                },
            )?;
            self.append(starts.len());
            watch.advance((starts.len() * PIECE).min(end - first) as u64);
        }
        Ok(())
    }

    /// Copies the first pieces to the end, each by its own thread.
    fn append(&mut self, n: usize) {
        let (_, mut start) = self.size();
        let pieces = &self.pieces[..n];
        let end = start + pieces.iter().map(|p| p.data.len()).sum::<usize>();
        let Sums {
            data,
            indices,
            indptr,
        } = &mut self.sums;
        if data.len() < end {
            data.resize(end, T::default());
            indices.resize(end, 0);
        }
        let mut jobs = Vec::with_capacity(n);
        let (mut data_left, mut indices_left) = (&mut data[start..], &mut indices[start..]);
        for piece in pieces {
            indptr.extend(piece.ends.iter().map(|end| (start + end) as i64));
            start += piece.data.len();
            let (d, rest) = data_left.split_at_mut(piece.data.len());
            data_left = rest;
            let (i, rest) = indices_left.split_at_mut(piece.data.len());
            indices_left = rest;
            jobs.push((d, i, piece));
        }
        jobs.into_par_iter().for_each(|(data, indices, piece)| {
            data.copy_from_slice(&piece.data);
            indices.copy_from_slice(&piece.indices);
        });
    }

    /// The sums, in no more memory than they need.
    pub(super) fn finish(mut self) -> Sums<T> {
        let (_, n) = self.size();
        self.sums.data.truncate(n);
        self.sums.data.shrink_to_fit();
        self.sums.indices.truncate(n);
        self.sums.indices.shrink_to_fit();
        self.sums
    }
}

/// The sums of a run of groups.
#[derive(Default)]
struct Piece<T> {
    data: Vec<T>,
    indices: Vec<i32>,
    ends: Vec<usize>,
}

/// One dense row of sums, a bit for each column it holds, and room to list them.
struct Accumulator<S> {
    sums: Vec<S>,
    touched: Vec<u64>,
    columns: Vec<i32>,
}

impl<S: Copy + Default + PartialEq + std::ops::AddAssign> Accumulator<S> {
    fn new(n_cols: usize) -> Self {
        let words = n_cols.div_ceil(64);
        Self {
            sums: vec![S::default(); n_cols],
            touched: vec![0; words],
            columns: vec![0; words * 64 + UNROLLED],
        }
    }

    /// Fills a piece anew with the sums of a run of groups.
    fn sum<T: Count<Sum = S>, I: Index>(
        &mut self,
        csr: Csr<'_, T, I>,
        groups: &Groups,
        range: Range<usize>,
        piece: &mut Piece<T>,
    ) -> Result<()> {
        let rows = groups.rows_of(&range);
        let bound = rows.iter().map(|&row| csr.row_nnz(row)).sum();
        piece.data.clear();
        piece.indices.clear();
        piece.ends.clear();
        piece.data.reserve(bound);
        piece.indices.reserve(bound);
        for group in range {
            for &row in groups.rows(group) {
                self.add(csr.row(row));
            }
            self.drain(piece)?;
        }
        Ok(())
    }

    fn add<T: Count<Sum = S>, I: Index>(&mut self, (cols, values): (&[I], &[T])) {
        for (col, value) in cols.iter().zip(values) {
            let col = col.at();
            self.sums[col] += value.widen();
            self.touched[col / 64] |= 1 << (col % 64);
        }
    }

    /// Moves the row of sums to the end of the piece and clears it.
    fn drain<T: Count<Sum = S>>(&mut self, piece: &mut Piece<T>) -> Result<()> {
        let n = list_bits(&mut self.touched, &mut self.columns);
        let start = piece.data.len();
        let (mut fits, mut zeros) = (true, false);
        let sums = &mut self.sums;
        piece.indices.extend_from_slice(&self.columns[..n]);
        piece.data.extend(self.columns[..n].iter().map(|&col| {
            let sum = std::mem::take(&mut sums[col as usize]);
            let value = T::narrow(sum);
            fits &= value.is_some();
            let value = value.unwrap_or_default();
            zeros |= value.widen() == S::default();
            value
        }));
        if !fits {
            let (what, dtype) = ("counts of a bin", T::DTYPE);
            return Err(Error::Overflow { what, dtype });
        }
        if zeros {
            piece.drop_zeros(start);
        }
        piece.ends.push(piece.data.len());
        Ok(())
    }
}

impl<T: Count> Piece<T> {
    /// Takes out what summed to zero, from `start` on.
    fn drop_zeros(&mut self, start: usize) {
        let mut kept = start;
        for i in start..self.data.len() {
            if self.data[i].widen() != T::Sum::default() {
                self.data[kept] = self.data[i];
                self.indices[kept] = self.indices[i];
                kept += 1;
            }
        }
        self.data.truncate(kept);
        self.indices.truncate(kept);
    }
}

/// Bits of a word that are listed without asking how many there are.
const UNROLLED: usize = 4;

with_avx2! {
    /// Lists the positions of the set bits in order, clears them, and counts them.
    ///
    /// A row of sums touches about one column in sixty: how many bits a word has
    /// cannot be foretold, so a few are always written and the surplus overwritten.
    fn list_bits(words: &mut [u64], out: &mut [i32]) -> usize {
        let mut n = 0;
        for (word, base) in words.iter_mut().zip((0..).step_by(64)) {
            let mut bits = std::mem::take(word);
            let count = bits.count_ones() as usize;
            for slot in &mut out[n..n + UNROLLED] {
                *slot = base + bits.trailing_zeros() as i32;
                bits &= bits.wrapping_sub(1);
            }
            if count > UNROLLED {
                for slot in &mut out[n + UNROLLED..n + count] {
                    *slot = base + bits.trailing_zeros() as i32;
                    bits &= bits.wrapping_sub(1);
                }
            }
            n += count;
        }
        n
    }
}
