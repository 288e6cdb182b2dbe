//! JSON as a stream: one value after the other, nothing kept.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::{Error, Result, Watch};

const BUFFER: usize = 1 << 18;
/// Values within values: deeper ones are no GeoJSON.
const DEEPEST: usize = 64;
/// Bytes of the longest text or number that is taken.
const LONGEST: usize = 1 << 16;

/// A file's bytes, and where in them the reader is.
pub(super) struct Json<'a> {
    path: PathBuf,
    file: Box<dyn Read + 'a>,
    watch: &'a Watch,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    /// Bytes before the buffer.
    before: u64,
    word: Vec<u8>,
}

impl<'a> Json<'a> {
    /// Opens a file, gzipped or not.
    pub(super) fn open(path: &Path, watch: &'a Watch) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut json = Self {
            path: path.to_owned(),
            file: Box::new(file),
            watch,
            buffer: vec![0; BUFFER],
            at: 0,
            end: 0,
            before: 0,
            word: Vec::new(),
        };
        json.fill()?;
        if json.buffer[..json.end].starts_with(&[0x1f, 0x8b]) {
            let file = File::open(path).map_err(|e| Error::io(path, e))?;
            json.file = Box::new(MultiGzDecoder::new(file));
            json.fill()?;
            json.before = 0;
        }
        if json.buffer[..json.end].starts_with(b"\xef\xbb\xbf") {
            json.at = 3;
        }
        Ok(json)
    }

    fn fill(&mut self) -> Result<bool> {
        self.watch.check()?;
        self.before += self.end as u64;
        self.at = 0;
        self.end = loop {
            match self.file.read(&mut self.buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                found => break found.map_err(|e| Error::io(&self.path, e))?,
            }
        };
        self.watch.advance(self.end as u64);
        Ok(self.end > 0)
    }

    /// The next byte, which stays; `None` at the end of the file.
    fn look(&mut self) -> Result<Option<u8>> {
        if self.at == self.end && !self.fill()? {
            return Ok(None);
        }
        Ok(Some(self.buffer[self.at]))
    }

    /// The next byte that is no space, which stays.
    pub(super) fn peek(&mut self) -> Result<Option<u8>> {
        // 0x1e stands before each text of a GeoJSON sequence.
        while let Some(byte) = self.look()? {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | 0x1e) {
                return Ok(Some(byte));
            }
            self.at += 1;
        }
        Ok(None)
    }

    /// Takes the next byte if it is this one.
    pub(super) fn take(&mut self, byte: u8) -> Result<bool> {
        let found = self.peek()? == Some(byte);
        self.at += usize::from(found);
        Ok(found)
    }

    /// Takes this byte.
    pub(super) fn expect(&mut self, byte: u8) -> Result<()> {
        if self.take(byte)? {
            return Ok(());
        }
        Err(self.fault(&format!("{:?}", char::from(byte))))
    }

    /// After a member: whether there is another one before the closing byte.
    pub(super) fn more(&mut self, close: u8) -> Result<bool> {
        if self.take(close)? {
            return Ok(false);
        }
        self.expect(b',')?;
        Ok(true)
    }

    /// A text.
    pub(super) fn text(&mut self) -> Result<String> {
        self.raw_text()?;
        let quoted = std::mem::take(&mut self.word);
        let text = unescaped(&quoted);
        self.word = quoted;
        text.ok_or_else(|| self.fault("a text in UTF-8"))
    }

    /// A text's bytes into `word`, escapes as they are.
    fn raw_text(&mut self) -> Result<()> {
        self.expect(b'"')?;
        self.word.clear();
        let mut escaped = false;
        loop {
            let byte = self
                .look()?
                .ok_or_else(|| self.fault("the end of a text"))?;
            self.at += 1;
            match byte {
                b'"' if !escaped => return Ok(()),
                _ => escaped = byte == b'\\' && !escaped,
            }
            if self.word.len() == LONGEST {
                return Err(self.fault("texts of at most 65536 bytes"));
            }
            self.word.push(byte);
        }
    }

    /// A finite number.
    pub(super) fn number(&mut self) -> Result<f64> {
        self.peek()?;
        self.bare_word()?;
        let number = std::str::from_utf8(&self.word).ok();
        let number = number.and_then(|word| word.parse::<f64>().ok());
        let number = number.filter(|n| n.is_finite());
        number.ok_or_else(|| self.fault("a finite number"))
    }

    /// What is neither a text nor a list: a number, true, false or null.
    fn bare_word(&mut self) -> Result<()> {
        self.word.clear();
        loop {
            let rest = &self.buffer[self.at..self.end];
            let taken = rest.iter().take_while(|b| is_bare(**b)).count();
            if self.word.len() + taken > LONGEST {
                return Err(self.fault("a number"));
            }
            self.word.extend_from_slice(&rest[..taken]);
            self.at += taken;
            if self.at < self.end || !self.fill()? {
                return Ok(());
            }
        }
    }

    /// A number, true, false or null, as it is written.
    pub(super) fn bare(&mut self) -> Result<String> {
        self.peek()?;
        self.bare_word()?;
        let known = matches!(&*self.word, b"true" | b"false" | b"null");
        let word = String::from_utf8_lossy(&self.word).into_owned();
        if known || word.parse::<f64>().is_ok() {
            return Ok(word);
        }
        Err(self.fault("a value"))
    }

    /// Opens a list or an object: whether it has a member.
    pub(super) fn opens(&mut self, open: u8, close: u8) -> Result<bool> {
        self.expect(open)?;
        Ok(!self.take(close)?)
    }

    /// The name of an object's next member.
    pub(super) fn key(&mut self) -> Result<String> {
        let key = self.text()?;
        self.expect(b':')?;
        Ok(key)
    }

    /// Passes over a value of any kind.
    pub(super) fn skip(&mut self, depth: usize) -> Result<()> {
        if depth > DEEPEST {
            return Err(self.fault("at most 64 values within values"));
        }
        match self.peek()? {
            Some(b'{') => {
                let mut more = self.opens(b'{', b'}')?;
                while more {
                    self.raw_text()?;
                    self.expect(b':')?;
                    self.skip(depth + 1)?;
                    more = self.more(b'}')?;
                }
                Ok(())
            }
            Some(b'[') => {
                let mut more = self.opens(b'[', b']')?;
                while more {
                    self.skip(depth + 1)?;
                    more = self.more(b']')?;
                }
                Ok(())
            }
            Some(b'"') => self.raw_text(),
            _ => self.bare().map(drop),
        }
    }

    /// The error that something else was expected here.
    pub(super) fn fault(&self, expected: &str) -> Error {
        let at = self.before + self.at as u64;
        let found = self.buffer[self.at..self.end].first();
        Error::Format {
            path: self.path.clone(),
            what: format!("GeoJSON, byte {at}"),
            expected: expected.to_owned(),
            found: found.map_or("the end of the file".into(), |b| {
                format!("{:?}", char::from(*b))
            }),
        }
    }
}

fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// A text without its escapes; `None` where they or its bytes are wrong.
fn unescaped(quoted: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(quoted).ok()?;
    if !text.contains('\\') {
        return Some(text.to_owned());
    }
    let mut units: Vec<u16> = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            units.extend_from_slice(char.encode_utf16(&mut [0; 2]));
            continue;
        }
        let escape = chars.next()?;
        units.push(match escape {
            'n' => 0x0a,
            't' => 0x09,
            'r' => 0x0d,
            'b' => 0x08,
            'f' => 0x0c,
            '"' | '\\' | '/' => escape as u16,
            'u' => {
                let digits: String = chars.by_ref().take(4).collect();
                u16::from_str_radix(&digits, 16).ok()?
            }
            _ => return None,
        });
    }
    String::from_utf16(&units).ok()
}
