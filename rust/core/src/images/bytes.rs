//! Byte codecs that are read as streams, a row at a time or a block at a time.

use std::io::{self, BufRead, ErrorKind, Read};

use weezl::{BitOrder, LzwStatus};

/// Reads until `out` is full or the stream ends; how many bytes came.
pub(super) fn read_full(mut from: impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < out.len() {
        match from.read(&mut out[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

/// TIFF LZW, most significant bit first.
pub(super) struct Lzw<R> {
    from: R,
    state: weezl::decode::Decoder,
    ended: bool,
}

impl<R: BufRead> Lzw<R> {
    pub(super) fn new(from: R) -> Self {
        let state = weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
        Self {
            from,
            state,
            ended: false,
        }
    }
}

impl<R: BufRead> Read for Lzw<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !out.is_empty() {
            let coded = self.from.fill_buf()?;
            let step = self.state.decode_bytes(coded, out);
            self.from.consume(step.consumed_in);
            match step.status {
                Ok(LzwStatus::Ok) => {}
                Ok(LzwStatus::Done | LzwStatus::NoProgress) => self.ended = true,
                Err(e) => return Err(io::Error::new(ErrorKind::InvalidData, e.to_string())),
            }
            if step.consumed_out > 0 {
                return Ok(step.consumed_out);
            }
        }
        Ok(0)
    }
}

/// TIFF 6.0, section 9: a count, then so many bytes, or one to be repeated.
pub(super) struct PackBits<R> {
    from: R,
    /// Bytes to copy before the next count.
    literal: usize,
    /// A byte, and how often it is still to come.
    repeat: (u8, usize),
}

impl<R: BufRead> PackBits<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            literal: 0,
            repeat: (0, 0),
        }
    }

    fn next(&mut self) -> io::Result<Option<u8>> {
        let next = self.from.fill_buf()?.first().copied();
        self.from.consume(usize::from(next.is_some()));
        Ok(next)
    }

    /// Reads a count; `false` at the end.
    fn start_run(&mut self) -> io::Result<bool> {
        match self.next()? {
            None => return Ok(false),
            Some(count @ 0..128) => self.literal = usize::from(count) + 1,
            Some(128) => {}
            Some(count) => {
                let value = self.next()?.ok_or(ErrorKind::UnexpectedEof)?;
                self.repeat = (value, 257 - usize::from(count));
            }
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for PackBits<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while self.literal == 0 && self.repeat.1 == 0 {
            if !self.start_run()? {
                return Ok(0);
            }
        }
        if self.literal == 0 {
            let n = self.repeat.1.min(out.len());
            out[..n].fill(self.repeat.0);
            self.repeat.1 -= n;
            return Ok(n);
        }
        let wanted = self.literal.min(out.len());
        let n = self.from.read(&mut out[..wanted])?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.literal -= n;
        Ok(n)
    }
}
