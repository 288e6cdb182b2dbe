//! Squares summed into bins.
//!
//! A bin's row is the sum of its squares' rows. Each thread keeps one dense
//! row of sums and a bitmap of the columns it touched: adding a count is one
//! store and one bit, and reading the bitmap gives the columns already sorted,
//! so nothing is ever sorted or merged. Bins are independent and a bin's
//! squares are added in input order, which fixes floating-point sums too.

use rayon::prelude::*;

use crate::csr::{Csr, Index};
use crate::error::{Result, expect_len};
use crate::simd::with_avx2;
use crate::{Error, Watch};

/// Bins per unit of parallel work.
const CHUNK: usize = 256;

/// A number type that counts come in, and the wider one they are summed in.
pub trait Count: Copy + Default + Send + Sync {
    /// Holds any sum that a matrix in memory can have.
    type Sum: Copy + Default + PartialEq + std::ops::AddAssign + Send;
    /// Name that numpy gives the type.
    const DTYPE: &'static str;
    /// The value as a sum.
    fn widen(self) -> Self::Sum;
    /// The sum as a value, if it fits.
    fn narrow(sum: Self::Sum) -> Option<Self>;
}

macro_rules! count {
    ($t:ty, $sum:ty, $name:literal, $sum_in:ident => $narrow:expr) => {
        impl Count for $t {
            type Sum = $sum;
            const DTYPE: &'static str = $name;
            fn widen(self) -> $sum {
                self as $sum
            }
            fn narrow($sum_in: $sum) -> Option<Self> {
                $narrow
            }
        }
    };
}

count!(i32, i64, "int32", sum => sum.try_into().ok());
count!(i64, i128, "int64", sum => sum.try_into().ok());
count!(f32, f64, "float32", sum => Some(sum as f32));
count!(f64, f64, "float64", sum => Some(sum));

/// The bins that hold at least one square, row by row, then column by column.
#[derive(Debug)]
pub struct Bins {
    /// Row of each bin in the grid of bins.
    pub rows: Vec<i64>,
    /// Column of each bin in the grid of bins.
    pub cols: Vec<i64>,
    /// Bin that each square belongs to: an index into the two above.
    pub bin_of_square: Vec<i64>,
}

/// Rows of sums in canonical form: columns ascending, none twice, no zeros.
#[derive(Debug)]
pub struct Sums<T> {
    /// Stored values.
    pub data: Vec<T>,
    /// Column of each value.
    pub indices: Vec<i32>,
    /// Where each row starts.
    pub indptr: Vec<i64>,
}

/// Gives each square its bin: `(row // factor, col // factor)`, bins sorted.
///
/// Rows and columns may be negative; division rounds down, as in Python.
pub fn assign(rows: &[i64], cols: &[i64], factor: i64) -> Result<Bins> {
    expect_len("cols", cols.len(), rows.len())?;
    if factor < 1 {
        return Err(Error::Value {
            what: "factor",
            expected: "at least 1".into(),
            found: factor.to_string(),
        });
    }
    let squares: Vec<(i64, i64)> = (rows.par_iter().zip(cols))
        .map(|(row, col)| (row.div_euclid(factor), col.div_euclid(factor)))
        .collect();
    Ok(Frame::around(&squares).map_or_else(
        || number_by_sorting(&squares),
        |frame| frame.number_by_marking(&squares),
    ))
}

/// The rectangle of bins that the squares span.
struct Frame {
    row: i64,
    col: i64,
    width: usize,
    cells: usize,
}

impl Frame {
    /// `None` when the squares lie so scattered that marking each cell of their
    /// rectangle would cost more than sorting them.
    fn around(squares: &[(i64, i64)]) -> Option<Self> {
        let row = squares.iter().map(|s| s.0).min()?;
        let col = squares.iter().map(|s| s.1).min()?;
        let height = squares.iter().map(|s| s.0).max()?.checked_sub(row)?;
        let width = squares.iter().map(|s| s.1).max()?.checked_sub(col)?;
        let width = usize::try_from(width).ok()?.checked_add(1)?;
        let height = usize::try_from(height).ok()?.checked_add(1)?;
        let cells = width.checked_mul(height)?;
        (cells <= 4 * squares.len() + (1 << 20)).then_some(Self {
            row,
            col,
            width,
            cells,
        })
    }

    fn cell(&self, (row, col): (i64, i64)) -> usize {
        (row - self.row) as usize * self.width + (col - self.col) as usize
    }

    fn number_by_marking(&self, squares: &[(i64, i64)]) -> Bins {
        let mut number = vec![-1; self.cells];
        for &square in squares {
            number[self.cell(square)] = 0;
        }
        let (mut rows, mut cols) = (Vec::new(), Vec::new());
        for (cell, number) in number.iter_mut().enumerate().filter(|(_, n)| **n == 0) {
            *number = rows.len() as i64;
            rows.push(self.row + (cell / self.width) as i64);
            cols.push(self.col + (cell % self.width) as i64);
        }
        let bin_of_square = (squares.par_iter())
            .map(|&square| number[self.cell(square)])
            .collect();
        Bins {
            rows,
            cols,
            bin_of_square,
        }
    }
}

fn number_by_sorting(squares: &[(i64, i64)]) -> Bins {
    let mut bins = squares.to_vec();
    bins.par_sort_unstable();
    bins.dedup();
    let bin_of_square = (squares.par_iter())
        .map(|square| bins.partition_point(|bin| bin < square) as i64)
        .collect();
    let (rows, cols) = bins.into_iter().unzip();
    Bins {
        rows,
        cols,
        bin_of_square,
    }
}

/// Sums the rows of `csr` that share a group; group −1 belongs to none.
pub fn sum_groups<T: Count, I: Index>(
    csr: Csr<'_, T, I>,
    group_of_row: &[i64],
    n_groups: usize,
    watch: &Watch,
) -> Result<Sums<T>> {
    let csr = csr.checked(watch)?;
    expect_len("group of each row", group_of_row.len(), csr.n_rows())?;
    if csr.n_cols > i32::MAX as usize {
        return Err(Error::Value {
            what: "columns",
            expected: "at most 2147483647".into(),
            found: csr.n_cols.to_string(),
        });
    }
    let (starts, members) = members_by_group(group_of_row, n_groups)?;
    let chunks: Vec<usize> = (0..n_groups).step_by(CHUNK).collect();
    let pieces = (chunks.par_iter())
        .map_init(
            || Accumulator::new(csr.n_cols),
            |accumulator, &first| {
                watch.check()?;
                let groups = first..(first + CHUNK).min(n_groups);
                let piece = accumulator.piece(csr, groups, &starts, &members)?;
                watch.advance(piece.ends.len() as u64);
                Ok(piece)
            },
        )
        .collect::<Result<Vec<_>>>()?;
    Ok(join(pieces, n_groups))
}

/// Rows of each group in input order: a stable counting sort.
fn members_by_group(group_of_row: &[i64], n_groups: usize) -> Result<(Vec<usize>, Vec<usize>)> {
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
    Ok((starts, members))
}

/// The sums of a run of groups, before they are joined.
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

    fn piece<T: Count<Sum = S>, I: Index>(
        &mut self,
        csr: Csr<'_, T, I>,
        groups: std::ops::Range<usize>,
        starts: &[usize],
        members: &[usize],
    ) -> Result<Piece<T>> {
        let squares = &members[starts[groups.start]..starts[groups.end]];
        let bound = squares.iter().map(|&row| csr.row_nnz(row)).sum();
        let mut piece = Piece {
            data: Vec::with_capacity(bound),
            indices: Vec::with_capacity(bound),
            ends: Vec::with_capacity(groups.len()),
        };
        for group in groups {
            for &row in &members[starts[group]..starts[group + 1]] {
                self.add(csr.row(row));
            }
            self.drain(&mut piece)?;
        }
        Ok(piece)
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

/// Puts the pieces one after another, each copied by its own thread.
fn join<T: Count>(pieces: Vec<Piece<T>>, n_groups: usize) -> Sums<T> {
    let nnz = pieces.iter().map(|piece| piece.data.len()).sum();
    let mut indptr = Vec::with_capacity(n_groups + 1);
    indptr.push(0);
    let mut data = vec![T::default(); nnz];
    let mut indices = vec![0; nnz];
    let mut jobs = Vec::with_capacity(pieces.len());
    let (mut data_left, mut indices_left) = (&mut data[..], &mut indices[..]);
    let mut start = 0;
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
    Sums {
        data,
        indices,
        indptr,
    }
}
