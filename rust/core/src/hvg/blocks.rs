//! Rows in fixed blocks, on all threads, merged in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::Watch;
use crate::csr::ROW_BLOCK;
use crate::error::Result;
use crate::sweep::sweep;

/// What is shared by the threads: blocks done early, and buffers to use again.
struct Merger<P, F> {
    next: usize,
    early: BTreeMap<usize, P>,
    free: Vec<P>,
    merge: F,
}

impl<P, F: FnMut(Range<usize>, &mut P)> Merger<P, F> {
    fn put(&mut self, block: usize, part: P, n_rows: usize) {
        self.early.insert(block, part);
        while let Some(mut part) = self.early.remove(&self.next) {
            (self.merge)(rows_of(self.next, n_rows), &mut part);
            self.free.push(part);
            self.next += 1;
        }
    }
}

fn rows_of(block: usize, n_rows: usize) -> Range<usize> {
    let first = block * ROW_BLOCK;
    first..n_rows.min(first + ROW_BLOCK)
}

/// Calls `fill` for each block of rows on a buffer that `make` gave, and `merge` for
/// each filled buffer in the order of the blocks; `merge` hands it back as new.
pub(super) fn fold_blocks<P: Send>(
    n_rows: usize,
    watch: &Watch,
    make: impl Fn() -> P + Sync,
    fill: impl Fn(&mut P, Range<usize>) -> Result<()> + Sync,
    merge: impl FnMut(Range<usize>, &mut P) + Send,
) -> Result<()> {
    let merger = Mutex::new(Merger {
        next: 0,
        early: BTreeMap::new(),
        free: Vec::new(),
        merge,
    });
    let locked = || merger.lock().unwrap_or_else(PoisonError::into_inner);
    sweep(
        n_rows.div_ceil(ROW_BLOCK),
        watch,
        || (),
        |(), block| {
            let free = locked().free.pop();
            let mut part = free.unwrap_or_else(&make);
            let rows = rows_of(block, n_rows);
            let count = rows.len();
            fill(&mut part, rows)?;
            locked().put(block, part, n_rows);
            watch.advance(count as u64);
            Ok(())
        },
    )
}

/// Two sums a column.
pub(super) type Pairs = Vec<[f64; 2]>;

/// Adds two sums a column to `sums`: `row(part, r)` adds what row `r` holds to a block's.
pub(super) fn add_pairs(
    n_rows: usize,
    sums: &mut [[f64; 2]],
    watch: &Watch,
    row: impl Fn(&mut [[f64; 2]], usize) -> Result<()> + Sync,
) -> Result<()> {
    let n_cols = sums.len();
    fold_blocks(
        n_rows,
        watch,
        || vec![[0.0; 2]; n_cols],
        |part: &mut Pairs, rows| rows.into_iter().try_for_each(|r| row(part, r)),
        |_, part| merge_pairs(sums, part),
    )
}

/// Adds a block's sums to the total and leaves zeros.
pub(super) fn merge_pairs(sums: &mut [[f64; 2]], part: &mut [[f64; 2]]) {
    for (sum, part) in sums.iter_mut().zip(part) {
        sum[0] += part[0];
        sum[1] += part[1];
        *part = [0.0; 2];
    }
}
