//! Reads at an offset: the only platform calls of the core.
//!
//! A positioned read moves no shared cursor, so one open file serves every
//! thread and stays usable after `fork`; unlike a memory map it fails with an
//! error, not a signal, when a file on a network disk shrinks.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// A file open for reads at any offset.
#[derive(Debug)]
pub struct ReadAt {
    file: File,
    len: u64,
    path: std::path::PathBuf,
}

impl ReadAt {
    /// Opens the file and asks its length once.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let path = path.to_owned();
        Ok(Self { file, len, path })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `length` bytes at `offset` into `buffer`, which it resizes.
    ///
    /// The range is held against the file's length before anything is
    /// allocated, so a header that lies cannot ask for terabytes.
    pub fn read(&self, what: &str, offset: u64, length: u64, buffer: &mut Vec<u8>) -> Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.len) {
            let (len, path) = (self.len, self.path.clone());
            return Err(Error::Format {
                path,
                what: what.to_owned(),
                expected: format!("{length} bytes at offset {offset}"),
                found: format!("a file of {len} bytes"),
            });
        }
        buffer.resize(length as usize, 0);
        read_exact_at(&self.file, buffer, offset).map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        match file.seek_read(buffer, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
