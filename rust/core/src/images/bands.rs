//! A JPEG with restart markers, cut into bands that decode on their own.
//!
//! At a restart marker the entropy coder starts anew (ITU-T T.81, E.1.4), so a
//! run of intervals behind a copy of the header, with the height of its own, is
//! a stream. Where chroma is shared between rows, libjpeg's upsampling looks a
//! row of MCUs up and down: a band is then decoded with a neighbour on each side,
//! and its own rows are bit for bit those of the whole.

use std::io::Read;

use super::codec::{Fault, Got};
use super::jpeg::{Info, Jpeg};
use super::{Block, Layout};
use crate::Watch;
use crate::error::Result as Outcome;
use crate::io::Section;

/// Bytes of RGB that a band has at most, if it can.
pub(super) const TARGET: usize = 16 << 20;

/// Bands that a picture is cut into at most, if they are not too thin.
const MOST_BANDS: usize = 64;

/// Groups that a band should have where two more are decoded for their chroma.
const WITH_CONTEXT: usize = 24;

/// Groups that it should have where none is.
const ALONE: usize = 4;

/// Where the pieces of a stream are that decode on their own.
#[derive(Debug)]
pub(super) struct Bands {
    header: Vec<u8>,
    /// Where each group of rows starts in the file, and where the last one ends.
    starts: Vec<u64>,
    /// Pixel rows of a group.
    group: usize,
    /// Pixel rows of a band.
    pub(super) rows: usize,
    /// Groups to decode above and below a band.
    context: usize,
}

/// What part of a file a band is, and which rows of it are wanted.
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) above: usize,
    pub(super) height: usize,
    pub(super) ends: bool,
}

impl Bands {
    /// Looks for markers where the header promises them; `None` if it does not, or
    /// if they are not where they should be.
    pub(super) fn find(
        layout: &Layout,
        header: Vec<u8>,
        info: Info,
        scan: Section,
        watch: &Watch,
    ) -> Outcome<Option<Self>> {
        let across = (info.width).div_ceil(info.mcu_width) as usize;
        let down = (info.height).div_ceil(info.mcu_height) as usize;
        let interval = info.restart_interval as usize;
        if info.sequential == 0 || interval == 0 || sof_height(&header).is_none() {
            return Ok(None);
        }
        // Rows of MCUs until a marker stands at the end of one.
        let mcu_rows = interval / greatest_divisor(interval, across);
        let (every, n) = (mcu_rows * across / interval, down.div_ceil(mcu_rows));
        let group = mcu_rows * info.mcu_height as usize;
        if group * layout.width * super::RGB > 2 * TARGET {
            return Ok(None);
        }
        let wanted = (down * across).div_ceil(interval);
        let Some(starts) = interval_starts(scan, wanted, watch)? else {
            return Ok(None);
        };
        let end = starts[wanted];
        let mut starts: Vec<_> = starts[..wanted].iter().step_by(every).copied().collect();
        starts.truncate(n);
        starts.push(end);
        let context = usize::from(info.rows_apart == 0);
        let groups = if context > 0 { WITH_CONTEXT } else { ALONE };
        Ok(Some(Self {
            header,
            starts,
            group,
            rows: rows_of_band(layout.width, layout.height, group, groups),
            context,
        }))
    }

    pub(super) fn piece(&self, block: Block, level_height: usize) -> Piece {
        let last = self.starts.len() - 1;
        let first = block.y / self.group;
        let end = (block.y + block.height).div_ceil(self.group).min(last);
        let from = first.saturating_sub(self.context);
        let to = (end + self.context).min(last);
        Piece {
            offset: self.starts[from],
            length: self.starts[to] - self.starts[from],
            above: block.y - from * self.group,
            height: (to * self.group).min(level_height) - from * self.group,
            ends: end == last,
        }
    }

    /// Decodes a piece's own rows from its bytes.
    pub(super) fn decode(
        &self,
        layout: &Layout,
        piece: &Piece,
        coded: &[u8],
        stream: &mut Vec<u8>,
        rows: usize,
        out: &mut Vec<u8>,
    ) -> Result<Got, Fault> {
        join(&self.header, piece.height, coded, stream);
        let mut jpeg = Jpeg::of(&[], stream, layout.colour)?;
        jpeg.start()?;
        jpeg.skip(piece.above)?;
        let row = layout.width * jpeg.info.samples as usize;
        out.resize(row * rows, 0);
        jpeg.rows(out)?;
        if piece.ends {
            jpeg.finish()?;
        }
        Ok(jpeg.got(layout.colour))
    }
}

/// Rows of a band: whole groups, enough to be worth it, and as many as fit the memory.
/// The threads have no say: the order of tiles in files depends on the bands.
pub(super) fn rows_of_band(width: usize, height: usize, group: usize, groups: usize) -> usize {
    let most = TARGET / (width * super::RGB);
    let rows = height.div_ceil(MOST_BANDS).max(groups * group).min(most);
    (rows / group).max(1) * group
}

fn greatest_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_divisor(b, a % b)
    }
}

/// Where each of `n` intervals starts, and where the last one ends.
fn interval_starts(mut scan: Section, n: usize, watch: &Watch) -> Outcome<Option<Vec<u64>>> {
    let mut starts = vec![scan.position()];
    let mut buffer = vec![0; 1 << 20];
    let mut after_ff = false;
    loop {
        watch.check()?;
        let at = scan.position();
        let Ok(read) = scan.read(&mut buffer) else {
            return Ok(None);
        };
        if read == 0 {
            return Ok(None);
        }
        let bytes = &buffer[..read];
        let first = after_ff.then_some(usize::MAX);
        for ff in first.into_iter().chain(memchr::memchr_iter(0xff, bytes)) {
            let next = ff.wrapping_add(1);
            match bytes.get(next) {
                Some(0xd0..=0xd7) => starts.push(at + next as u64 + 1),
                Some(0 | 0xff) | None => {}
                Some(_) => {
                    // Of one byte that stands before this buffer the end is one less.
                    let end = at + next as u64 - 1;
                    // Hamamatsu writes a marker after the last interval too.
                    starts.pop_if(|start| *start == end);
                    starts.push(end);
                    return Ok((starts.len() == n + 1).then_some(starts));
                }
            }
        }
        after_ff = bytes.last() == Some(&0xff);
    }
}

/// A stream of its own: the header with another height, the data with its restart
/// markers counted from 0, and an end marker.
pub(super) fn join(header: &[u8], height: usize, coded: &[u8], stream: &mut Vec<u8>) {
    stream.clear();
    stream.extend_from_slice(header);
    if let Some(at) = sof_height(header) {
        stream[at..at + 2].copy_from_slice(&(height.min(65_535) as u16).to_be_bytes());
    }
    let start = stream.len();
    let cut = match coded {
        [data @ .., 0xff, 0xd0..=0xd7] => data,
        data => data,
    };
    stream.extend_from_slice(cut);
    let markers: Vec<usize> = memchr::memchr_iter(0xff, cut)
        .filter(|&at| matches!(cut.get(at + 1), Some(0xd0..=0xd7)))
        .collect();
    for (number, at) in markers.into_iter().enumerate() {
        stream[start + at + 1] = 0xd0 + (number % 8) as u8;
    }
    stream.extend_from_slice(&[0xff, 0xd9]);
}

/// Where the frame header says the height.
fn sof_height(header: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        let [0xff, marker, high, low] = *header.get(at..at + 4)? else {
            return None;
        };
        match marker {
            0xff => at += 1,
            0xc0..=0xc3 => return (at + 7 <= header.len()).then_some(at + 5),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
}
