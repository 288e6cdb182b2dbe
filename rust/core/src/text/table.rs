//! A table of numbers with a name before each row: mostly zeros, so read as CSR.

use std::path::Path;

use super::{Fault, Text, Value, lines, number};
use crate::Watch;
use crate::error::Result;

/// The rows of a table.
#[derive(Debug)]
pub struct Table<T> {
    /// The first line.
    pub header: Vec<u8>,
    /// Names of rows, a line each, as they are in the text.
    pub names: Vec<u8>,
    /// Values that are not zero.
    pub data: Vec<T>,
    /// Column of each.
    pub indices: Vec<i32>,
    /// Where each row starts.
    pub indptr: Vec<i64>,
}

/// Reads a table whose fields are parted by `separator`; `n_cols` are the values of a row.
///
/// Names may be quoted, values not.
pub fn read_table<T: Value>(
    path: &Path,
    separator: u8,
    n_cols: usize,
    watch: &Watch,
) -> Result<Table<T>> {
    let mut text = Text::open(path)?;
    let header = text.line()?.unwrap_or_default();
    let mut table = Table {
        header,
        names: Vec::new(),
        data: Vec::new(),
        indices: Vec::new(),
        indptr: vec![0],
    };
    let parse = |piece: &[u8]| Table::<T>::parse(piece, separator, n_cols);
    let take = |piece: Table<T>| {
        let start = table.data.len() as i64;
        table.names.extend(piece.names);
        table
            .indptr
            .extend(piece.indptr[1..].iter().map(|end| start + end));
        table.data.extend(piece.data);
        table.indices.extend(piece.indices);
        Ok(())
    };
    text.parse(parse, take, watch)?;
    Ok(table)
}

impl<T: Value> Table<T> {
    fn parse(piece: &[u8], separator: u8, n_cols: usize) -> std::result::Result<Self, Fault> {
        let mut table = Self {
            header: Vec::new(),
            names: Vec::new(),
            data: Vec::new(),
            indices: Vec::new(),
            indptr: vec![0],
        };
        for line in lines(piece) {
            let (name, values) = split_name(line, separator)
                .ok_or_else(|| Fault::line("a name and numbers", line))?;
            table.names.extend_from_slice(name);
            table.names.push(b'\n');
            let found = table.row(values, separator, line)?;
            if found != n_cols {
                return Err(Fault::line("as many numbers as the header has names", line));
            }
            table.indptr.push(table.data.len() as i64);
        }
        Ok(table)
    }

    /// Adds the values that are not zero; says how many there were in all.
    fn row(
        &mut self,
        mut values: &[u8],
        separator: u8,
        line: &[u8],
    ) -> std::result::Result<usize, Fault> {
        let mut col = 0;
        loop {
            // Nearly all are a lone zero.
            while let [b'0', next, rest @ ..] = values
                && *next == separator
            {
                (values, col) = (rest, col + 1);
            }
            let end = values.iter().position(|&b| b == separator);
            let word = &values[..end.unwrap_or(values.len())];
            let value: T = number(word).map_err(|refusal| Fault::number::<T>(refusal, line))?;
            if value != T::default() {
                self.data.push(value);
                self.indices.push(col as i32);
            }
            col += 1;
            match end {
                Some(end) => values = &values[end + 1..],
                None => return Ok(col),
            }
        }
    }
}

/// The name that a line starts with, without quotes, and what comes after it.
fn split_name(line: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let (name, rest) = match line {
        [b'"', quoted @ ..] => {
            let end = quoted.iter().position(|&b| b == b'"')?;
            (&quoted[..end], &quoted[end + 1..])
        }
        _ => line.split_at(line.iter().position(|&b| b == separator)?),
    };
    match rest {
        [first, rest @ ..] if *first == separator => Some((name, rest)),
        _ => None,
    }
}
