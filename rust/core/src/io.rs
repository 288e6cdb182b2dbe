//! Reads at an offset: the only platform calls of the core.
//!
//! A positioned read moves no shared cursor, so one open file serves every
//! thread and stays usable after `fork`; unlike a memory map it fails with an
//! error, not a signal, when a file on a network disk shrinks. (Windows' read
//! does move the cursor, but no read here starts from it.)

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

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

    /// Its length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        self.expect(what, offset, length)?;
        buffer.resize(length as usize, 0);
        read_exact_at(&self.file, buffer, offset).map_err(|e| Error::io(&self.path, e))
    }

    /// Fills a slice with the bytes at `offset`.
    pub fn fill(&self, what: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.expect(what, offset, out.len() as u64)?;
        read_exact_at(&self.file, out, offset).map_err(|e| Error::io(&self.path, e))
    }

    fn expect(&self, what: &str, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.len) {
            let (len, path) = (self.len, self.path.clone());
            return Err(Error::Format {
                path,
                what: what.to_owned(),
                expected: format!("{length} bytes at offset {offset}"),
                found: format!("a file of {len} bytes"),
            });
        }
        Ok(())
    }
}

/// A part of a file as a stream: what a decoder that works from top to bottom reads.
#[derive(Debug)]
pub struct Section {
    file: Arc<ReadAt>,
    start: u64,
    at: u64,
    end: u64,
}

impl Section {
    /// The part of `length` bytes from `offset` on, cut where the file ends.
    pub fn new(file: Arc<ReadAt>, offset: u64, length: u64) -> Self {
        let end = offset.saturating_add(length).min(file.len);
        let start = offset.min(end);
        let at = start;
        Self {
            file,
            start,
            at,
            end,
        }
    }

    /// Where in the file the next byte comes from.
    pub fn position(&self) -> u64 {
        self.at
    }
}

impl io::Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min((self.end - self.at).min(1 << 30) as usize);
        read_exact_at(&self.file.file, &mut buffer[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl io::Seek for Section {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let (base, by) = match to {
            io::SeekFrom::Start(by) => (self.start, i64::try_from(by).unwrap_or(i64::MAX)),
            io::SeekFrom::Current(by) => (self.at, by),
            io::SeekFrom::End(by) => (self.end, by),
        };
        let at = base.checked_add_signed(by).filter(|&at| at >= self.start);
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?.min(self.end);
        Ok(self.at - self.start)
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
