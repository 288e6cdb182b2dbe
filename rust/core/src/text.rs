//! Numbers in text: matrix-market triplets and tables of counts, gzipped or not.
//!
//! A stretch of text is inflated by one thread while all others parse the one before
//! it, cut at the ends of lines. The text as a whole is never held: a table of 10^10
//! cells passes through in a few megabytes.

mod mtx;
mod table;
mod write;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rayon::prelude::*;

use crate::{Error, Result, Watch};

pub use mtx::{Triplets, read_mtx};
pub use table::{Table, read_table};
pub use write::{Lines, write_table};

/// Bytes of text that are parsed together.
const STRETCH: usize = 16 << 20;
/// Bytes of text that one thread parses at a time.
const PIECE: usize = 256 << 10;

/// A number type that text is parsed into.
pub trait Value: Copy + Default + PartialEq + Send + Sync {
    /// Name that numpy gives the type.
    const DTYPE: &'static str;
    /// From a whole number, if it fits.
    fn whole(number: i64) -> Option<Self>;
    /// From the text of any other number, if that is one of this type.
    fn other(text: &str) -> Option<Self>;
    /// Appends the number as text.
    fn write(self, out: &mut Vec<u8>);
}

macro_rules! value {
    ($t:ty, $name:literal, $whole:expr, $other:expr, $format:literal) => {
        impl Value for $t {
            const DTYPE: &'static str = $name;
            fn whole(number: i64) -> Option<Self> {
                $whole(number)
            }
            fn other(text: &str) -> Option<Self> {
                $other(text)
            }
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(format!($format, self).as_bytes());
            }
        }
    };
}

value!(i32, "int32", |n: i64| n.try_into().ok(), |_| None, "{}");
value!(i64, "int64", Some, |_| None, "{}");
value!(
    f32,
    "float32",
    |n| Some(n as f32),
    |s: &str| s.parse().ok(),
    "{:?}"
);
value!(
    f64,
    "float64",
    |n| Some(n as f64),
    |s: &str| s.parse().ok(),
    "{:?}"
);

/// Why a number could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It is none.
    NoNumber,
    /// The type cannot hold it.
    TooLarge,
}

/// The number that a text is.
fn number<T: Value>(text: &[u8]) -> std::result::Result<T, Refusal> {
    if let Some(digits) = whole(text) {
        return T::whole(digits).ok_or(Refusal::TooLarge);
    }
    let text = std::str::from_utf8(text)
        .map_err(|_| Refusal::NoNumber)?
        .trim();
    if let Ok(number) = text.parse::<i64>() {
        return T::whole(number).ok_or(Refusal::TooLarge);
    }
    T::other(text).ok_or(match text.parse::<f64>() {
        Ok(_) => Refusal::TooLarge,
        Err(_) => Refusal::NoNumber,
    })
}

/// The value of up to 18 digits.
fn whole(text: &[u8]) -> Option<i64> {
    if text.is_empty() || text.len() > 18 {
        return None;
    }
    (text.iter()).try_fold(0i64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| value * 10 + i64::from(digit))
    })
}

/// A text file read in stretches that end where lines do.
struct Text {
    path: PathBuf,
    reader: Box<dyn Read + Send>,
    rest: Vec<u8>,
    ended: bool,
}

impl Text {
    fn open(path: &Path) -> Result<Self> {
        let open = || File::open(path).map_err(|e| Error::io(path, e));
        let mut start = Vec::new();
        (open()?.take(2).read_to_end(&mut start)).map_err(|e| Error::io(path, e))?;
        let reader: Box<dyn Read + Send> = match start == [0x1f, 0x8b] {
            true => Box::new(MultiGzDecoder::new(std::io::BufReader::with_capacity(
                1 << 18,
                open()?,
            ))),
            false => Box::new(open()?),
        };
        Ok(Self {
            path: path.to_owned(),
            reader,
            rest: Vec::new(),
            ended: false,
        })
    }

    fn bad(&self, what: &str, expected: &str, found: impl Into<String>) -> Error {
        Error::Format {
            path: self.path.clone(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            found: found.into(),
        }
    }

    /// The next whole lines, about `size` bytes of them; empty at the end.
    fn stretch(&mut self, size: usize) -> Result<Vec<u8>> {
        let mut text = std::mem::take(&mut self.rest);
        while !self.ended {
            let (start, room) = (text.len(), size.saturating_sub(text.len()).max(1 << 16));
            let taken = (self.reader.by_ref().take(room as u64)).read_to_end(&mut text);
            match taken {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(e) if e.raw_os_error().is_some() => return Err(Error::io(&self.path, e)),
                Err(e) => return Err(self.bad("text", "a whole gzip file", e.to_string())),
            }
            let newline = text[start..].iter().rposition(|&b| b == b'\n');
            if let Some(at) = newline
                && text.len() >= size
            {
                self.rest = text.split_off(start + at + 1);
                break;
            }
        }
        Ok(text)
    }

    /// The next line, without its end; `None` at the end of the file.
    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut text = self.stretch(1)?;
        let Some(at) = text.iter().position(|&b| b == b'\n') else {
            return Ok((!text.is_empty()).then_some(text));
        };
        let mut rest = text.split_off(at + 1);
        rest.append(&mut self.rest);
        self.rest = rest;
        text.truncate(at);
        if text.last() == Some(&b'\r') {
            text.pop();
        }
        Ok(Some(text))
    }

    /// Parses all lines to come: pieces in parallel, `take` is given them in order.
    fn parse<P: Send>(
        &mut self,
        parse: impl Fn(&[u8]) -> std::result::Result<P, Fault> + Sync,
        mut take: impl FnMut(P) -> Result<()> + Send,
        watch: &Watch,
    ) -> Result<()> {
        let mut text = self.stretch(STRETCH)?;
        while !text.is_empty() {
            watch.check()?;
            let (next, parsed) = rayon::join(
                || self.stretch(STRETCH),
                || {
                    pieces(&text)
                        .into_par_iter()
                        .map(&parse)
                        .collect::<Vec<_>>()
                },
            );
            for piece in parsed {
                take(piece.map_err(|fault| fault.explain(self))?)?;
            }
            watch.advance(text.len() as u64);
            text = next?;
        }
        Ok(())
    }
}

/// What is wrong with a line.
enum Fault {
    /// What was expected, and the line.
    Line(&'static str, String),
    /// A number beyond the type of this name.
    Overflow(&'static str),
}

impl Fault {
    fn line(expected: &'static str, line: &[u8]) -> Self {
        let shown = &line[..line.len().min(60)];
        Self::Line(expected, String::from_utf8_lossy(shown).into_owned())
    }

    fn number<T: Value>(refusal: Refusal, line: &[u8]) -> Self {
        match refusal {
            Refusal::NoNumber => Self::line("numbers", line),
            Refusal::TooLarge => Self::Overflow(T::DTYPE),
        }
    }

    fn explain(self, text: &Text) -> Error {
        match self {
            Self::Line(expected, found) => text.bad("line", expected, format!("{found:?}")),
            Self::Overflow(dtype) => {
                let what = "number in a text";
                Error::Overflow { what, dtype }
            }
        }
    }
}

/// Cuts text into pieces that end where lines do.
fn pieces(mut text: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while text.len() > PIECE {
        let newline = text[PIECE..].iter().position(|&b| b == b'\n');
        let end = newline.map_or(text.len(), |at| PIECE + at + 1);
        let (piece, rest) = text.split_at(end);
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    pieces
}

/// The lines of a piece, without their ends and without empty ones.
fn lines(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    (piece.split(|&b| b == b'\n'))
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty())
}
