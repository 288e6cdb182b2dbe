//! A sparse matrix written as a table with all of its zeros.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rayon::prelude::*;

use super::Value;
use crate::csr::{Csr, Index};
use crate::error::{Result, expect_len};
use crate::{Error, Watch};

/// Bytes of text that are made before they are written.
const HELD: usize = 32 << 20;
/// Bytes of text that one thread makes at a time.
const PIECE: usize = 1 << 20;

/// What stands in the table beside the numbers.
#[derive(Debug, Clone, Copy)]
pub struct Lines<'a> {
    /// The first line, without its end.
    pub header: &'a str,
    /// Name of each row, as it is to be in the text.
    pub names: &'a [String],
    /// Byte between two fields.
    pub separator: u8,
}

/// Writes a header and a row a line: its name, then all values.
pub fn write_table<T: Value, I: Index>(
    path: &Path,
    lines: Lines<'_>,
    csr: Csr<'_, T, I>,
    watch: &Watch,
) -> Result<()> {
    let csr = csr.checked(watch)?;
    expect_len("names of rows", lines.names.len(), csr.n_rows())?;
    check_order(csr)?;
    let failed = |e| Error::io(path, e);
    let mut file = File::create(path).map_err(failed)?;
    file.write_all(format!("{}\n", lines.header).as_bytes())
        .map_err(failed)?;
    let zeros = [lines.separator, b'0'].repeat(csr.n_cols);
    let per_piece = (PIECE / zeros.len().max(1)).clamp(1, 1 << 14);
    let starts: Vec<_> = (0..csr.n_rows()).step_by(per_piece).collect();
    let held = (HELD / PIECE).max(1);
    let mut ready: Vec<Vec<u8>> = Vec::new();
    for batch in starts.chunks(held).chain([&[][..]]) {
        watch.check()?;
        let (written, made) = rayon::join(
            || ready.iter().try_for_each(|text| file.write_all(text)),
            || {
                (batch.par_iter())
                    .map(|&start| {
                        let end = (start + per_piece).min(csr.n_rows());
                        text(csr, lines, &zeros, start..end)
                    })
                    .collect::<Vec<_>>()
            },
        );
        written.map_err(failed)?;
        watch.advance((batch.len() * per_piece) as u64);
        ready = made;
    }
    Ok(())
}

/// Columns must ascend in each row: a table has a place for each value once.
fn check_order<T: Value, I: Index>(csr: Csr<'_, T, I>) -> Result<()> {
    let ascends = |row: usize| {
        csr.row(row)
            .0
            .windows(2)
            .all(|pair| pair[0].at() < pair[1].at())
    };
    match (0..csr.n_rows())
        .into_par_iter()
        .find_first(|&row| !ascends(row))
    {
        None => Ok(()),
        Some(row) => Err(Error::Value {
            what: "columns of a matrix",
            expected: "ascending ones, none twice".into(),
            found: format!("others in row {row}"),
        }),
    }
}

/// The lines of a run of rows.
fn text<T: Value, I: Index>(
    csr: Csr<'_, T, I>,
    lines: Lines<'_>,
    zeros: &[u8],
    rows: std::ops::Range<usize>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * (zeros.len() + 64));
    for row in rows {
        out.extend_from_slice(lines.names[row].as_bytes());
        let (cols, values) = csr.row(row);
        let mut next = 0;
        for (col, &value) in cols.iter().zip(values) {
            let gap = col.at() - next;
            out.extend_from_slice(&zeros[..2 * gap]);
            out.push(lines.separator);
            value.write(&mut out);
            next = col.at() + 1;
        }
        out.extend_from_slice(&zeros[..2 * (csr.n_cols - next)]);
        out.push(b'\n');
    }
    out
}
