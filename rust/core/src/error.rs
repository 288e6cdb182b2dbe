//! The one error of the core.
//!
//! Each variant is a kind of fault, and the door maps each to one Python
//! exception. A message says where (a file, a block, an argument), what was
//! expected and what was found, in that order.

use std::io;
use std::path::{Path, PathBuf};

/// What a kernel returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, with where, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the messages say")]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    /// A file's bytes are not what its header promised.
    #[error("{what}: expected {expected}, got {found} ({})", path.display())]
    Format {
        path: PathBuf,
        what: String,
        expected: String,
        found: String,
    },

    /// An array has the wrong length.
    #[error("{what}: expected {expected}, got {found}")]
    Shape {
        what: &'static str,
        expected: usize,
        found: usize,
    },

    /// A value lies outside what the method can take.
    #[error("{what}: expected {expected}, got {found}")]
    Value {
        what: &'static str,
        expected: String,
        found: String,
    },

    /// An index points outside its array.
    #[error("{what}: expected an index in 0..{bound}, got {found}")]
    Index {
        what: &'static str,
        bound: usize,
        found: i64,
    },

    /// A sum does not fit the type it was asked in.
    #[error("{what}: a sum does not fit {dtype}")]
    Overflow {
        what: &'static str,
        dtype: &'static str,
    },

    /// A valid file that this version cannot decode.
    #[error("{what}: expected {expected}, got {found} ({})", path.display())]
    Unsupported {
        path: PathBuf,
        what: String,
        expected: String,
        found: String,
    },

    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// An I/O error with the file it happened on.
    pub fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { path, source }
    }
}

/// Checks that an array has the length that another argument implies.
pub fn expect_len(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape {
        what,
        expected,
        found,
    })
}
