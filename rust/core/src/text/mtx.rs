//! Matrix-market triplets: `row column value` a line, counted from one.
//!
//! 10x writes genes × barcodes with barcodes ascending, which is CSR of barcodes × genes
//! in the order of the lines. Other orders are sorted afterwards.

use std::path::Path;

use super::{Fault, Text, Value, number, whole};
use crate::Watch;
use crate::error::Result;

/// Most rows or columns that a header may promise: room is made for columns.
const MOST: i64 = 1 << 28;

/// A matrix of triplets, turned: a row is a column of the file.
#[derive(Debug)]
pub struct Triplets<T> {
    /// Stored values.
    pub data: Vec<T>,
    /// Column of each value, in a row in the order of the file.
    pub indices: Vec<i32>,
    /// Where each row starts.
    pub indptr: Vec<i64>,
    /// Number of columns.
    pub n_cols: usize,
}

/// What the first lines say.
struct Header {
    rows: usize,
    cols: usize,
    entries: usize,
    pattern: bool,
    /// Whether entries below the diagonal stand for those above it too.
    symmetric: bool,
}

/// The triplets of a piece of text.
struct Piece<T> {
    lines: usize,
    data: Vec<T>,
    rows: Vec<i32>,
    cols: Vec<u32>,
}

impl<T> Piece<T> {
    fn push(&mut self, row: i64, col: i64, value: T) {
        self.rows.push(row as i32);
        self.cols.push(col as u32);
        self.data.push(value);
    }
}

/// Triplets in the order of the file.
struct Entries<T> {
    data: Vec<T>,
    rows: Vec<i32>,
    /// Entries of each column of the file.
    per_col: Vec<i64>,
    last: u32,
    /// Column of each entry, once one came out of order.
    cols: Option<Vec<u32>>,
}

/// Reads triplets as CSR of the file's columns.
pub fn read_mtx<T: Value>(path: &Path, watch: &Watch) -> Result<Triplets<T>> {
    let mut text = Text::open(path)?;
    let header = Header::read(&mut text)?;
    let mut entries = Entries::new(&header);
    let mut lines = 0;
    let take = |piece: Piece<T>| {
        lines += piece.lines;
        entries.take(piece);
        Ok(())
    };
    text.parse(|piece| header.parse(piece), take, watch)?;
    if lines != header.entries {
        return Err(text.bad("entries", &header.entries.to_string(), lines.to_string()));
    }
    Ok(entries.turned(header.rows))
}

impl Header {
    fn read(text: &mut Text) -> Result<Self> {
        let banner = text.line()?.unwrap_or_default();
        let banner = String::from_utf8_lossy(&banner).to_lowercase();
        let words: Vec<_> = banner.split_whitespace().collect();
        let ["%%matrixmarket", "matrix", "coordinate", field, symmetry] = words[..] else {
            let expected = "%%MatrixMarket matrix coordinate integer general";
            return Err(text.bad("first line", expected, format!("{banner:.60?}")));
        };
        if !["integer", "real", "pattern"].contains(&field) {
            return Err(text.bad("field", "integer, real or pattern", field));
        }
        if !["general", "symmetric"].contains(&symmetry) {
            return Err(text.bad("symmetry", "general or symmetric", symmetry));
        }
        let line = Self::line_of_sizes(text)?;
        let sizes: Vec<_> = fields(&line).map(whole).collect();
        let symmetric = symmetry == "symmetric";
        match sizes[..] {
            [Some(rows), Some(cols), Some(entries)]
                if (!symmetric || rows == cols) && rows.max(cols) <= MOST =>
            {
                Ok(Self {
                    rows: rows as usize,
                    cols: cols as usize,
                    entries: entries as usize,
                    pattern: field == "pattern",
                    symmetric,
                })
            }
            _ => {
                let found = String::from_utf8_lossy(&line).into_owned();
                let expected = "rows columns entries";
                Err(text.bad("line of sizes", expected, format!("{found:.60?}")))
            }
        }
    }

    /// The first line that is no comment.
    fn line_of_sizes(text: &mut Text) -> Result<Vec<u8>> {
        while let Some(line) = text.line()? {
            if line.first() != Some(&b'%') && !line.trim_ascii().is_empty() {
                return Ok(line);
            }
        }
        Err(text.bad("line of sizes", "rows columns entries", "the end"))
    }

    fn parse<T: Value>(&self, piece: &[u8]) -> std::result::Result<Piece<T>, Fault> {
        let expected = piece.len() / 8;
        let mut parsed = Piece {
            lines: 0,
            data: Vec::with_capacity(expected),
            rows: Vec::with_capacity(expected),
            cols: Vec::with_capacity(expected),
        };
        for line in super::lines(piece) {
            let mut words = fields(line);
            let mut place = |end: usize| {
                let at = words.next().and_then(whole)?;
                (1..=end as i64).contains(&at).then_some(at - 1)
            };
            let (Some(row), Some(col)) = (place(self.rows), place(self.cols)) else {
                return Err(Fault::line("row, column and value within the sizes", line));
            };
            let value = match words.next() {
                None if self.pattern => T::whole(1).unwrap_or_default(),
                Some(word) if !self.pattern => {
                    number(word).map_err(|refusal| Fault::number::<T>(refusal, line))?
                }
                _ => return Err(Fault::line("row, column and value", line)),
            };
            if words.next().is_some() {
                return Err(Fault::line("row, column and value", line));
            }
            parsed.lines += 1;
            parsed.push(row, col, value);
            if self.symmetric && row != col {
                parsed.push(col, row, value);
            }
        }
        Ok(parsed)
    }
}

/// The words of a line.
fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| b.is_ascii_whitespace())
        .filter(|word| !word.is_empty())
}

impl<T: Value> Entries<T> {
    fn new(header: &Header) -> Self {
        let room = header.entries.min(1 << 24);
        Self {
            data: Vec::with_capacity(room),
            rows: Vec::with_capacity(room),
            per_col: vec![0; header.cols],
            last: 0,
            cols: None,
        }
    }

    fn take(&mut self, piece: Piece<T>) {
        for &col in &piece.cols {
            if col < self.last && self.cols.is_none() {
                let columns = (0..).zip(&self.per_col);
                let known = columns.flat_map(|(col, &n)| std::iter::repeat_n(col, n as usize));
                let mut known: Vec<u32> = known.collect();
                // Those of this piece come below, as a whole.
                known.truncate(self.data.len());
                self.cols = Some(known);
            }
            self.last = col;
            self.per_col[col as usize] += 1;
        }
        if let Some(cols) = &mut self.cols {
            cols.extend_from_slice(&piece.cols);
        }
        self.data.extend_from_slice(&piece.data);
        self.rows.extend_from_slice(&piece.rows);
    }

    /// Rows of the file as columns, its columns as rows.
    fn turned(self, n_cols: usize) -> Triplets<T> {
        let mut indptr = vec![0; self.per_col.len() + 1];
        for (col, n) in self.per_col.iter().enumerate() {
            indptr[col + 1] = indptr[col] + n;
        }
        let (mut data, mut indices) = (self.data, self.rows);
        if let Some(cols) = self.cols {
            let mut next = indptr.clone();
            let (unsorted, rows) = (data.clone(), indices.clone());
            for ((col, value), row) in cols.into_iter().zip(unsorted).zip(rows) {
                let slot = &mut next[col as usize];
                (data[*slot as usize], indices[*slot as usize]) = (value, row);
                *slot += 1;
            }
        }
        Triplets {
            data,
            indices,
            indptr,
            n_cols,
        }
    }
}
