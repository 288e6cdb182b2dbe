//! One pass from top to bottom over a picture that is a single stream.
//!
//! Compressed data without restart markers can only be read from its start. A
//! pass decodes band after band, passes over rows that nobody wants, and stops
//! after the last one wanted; what it holds is a band and the decoder's window.

use std::io::{BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::bytes::{Lzw, PackBits, read_full};
use super::codec::{Codec, Fault, Got};
use super::jpeg::Jpeg;
use super::{Block, Blocks, Level, png, settle};
use crate::Watch;
use crate::error::Result as Outcome;
use crate::io::Section;

/// Bytes read from the file at a time.
const CHUNK: usize = 1 << 18;

/// Rows passed over between two looks at the watch.
const STRIDE: usize = 256;

/// Time between two looks at the watch while others have their turn.
const LOOK: Duration = Duration::from_millis(100);

/// A pass that threads take turns at: each decodes a band, and cuts from it while
/// the next one decodes.
pub struct Stream<'a> {
    blocks: Blocks<'a>,
    state: Mutex<State>,
    turned: Condvar,
}

#[derive(Default)]
struct State {
    turn: usize,
    pass: Option<Pass>,
    failed: Option<(String, Fault)>,
}

/// A thread's turn, which ends when it is dropped.
pub struct Turn<'a> {
    stream: &'a Stream<'a>,
    state: MutexGuard<'a, State>,
}

impl<'a> Stream<'a> {
    /// A pass over a level that is one stream; nothing is read yet.
    pub fn new(blocks: Blocks<'a>) -> Self {
        Self {
            blocks,
            state: Mutex::default(),
            turned: Condvar::new(),
        }
    }

    /// Waits for the turns before; they are taken once each, bands in ascending order.
    pub fn turn(&self, turn: usize, watch: &Watch) -> Outcome<Turn<'_>> {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        while state.turn != turn {
            watch.check()?;
            let waited = self.turned.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
        let stream = self;
        Ok(Turn { stream, state })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.state.turn += 1;
        self.stream.turned.notify_all();
    }
}

impl Turn<'_> {
    /// The first block that has not been passed.
    pub fn next_block(&self) -> usize {
        let row = self.state.pass.as_ref().map_or(0, |pass| pass.row);
        row.div_ceil(self.stream.blocks.block_height())
    }

    /// Decodes a block that has not been passed; how many pixels it took comes back.
    pub fn decode(&mut self, index: usize, out: &mut Vec<u8>, watch: &Watch) -> Outcome<u64> {
        let blocks = &self.stream.blocks;
        let level = blocks.level;
        let block = blocks.block(index);
        let state = &mut *self.state;
        let before = state.pass.as_ref().map_or(0, |pass| pass.row);
        if state.failed.is_none() {
            let done = Pass::resume(&mut state.pass, level)
                .and_then(|pass| pass.decode(level, block, out, watch));
            state.failed = done.err().map(|fault| (blocks.name(index), fault));
        }
        watch.check()?;
        match &state.failed {
            Some((what, fault)) => Err(fault.clone().at(level.file.path(), what.clone())),
            None => Ok((block.width * (block.y + block.height - before)) as u64),
        }
    }
}

/// Where a pass is: a decoder a plane, and the next row.
struct Pass {
    planes: Vec<Rows>,
    row: usize,
    samples: Vec<u8>,
}

enum Rows {
    Jpeg(Box<Jpeg<'static>>),
    Png(Box<::png::Reader<BufReader<Section>>>),
    Bytes(Box<dyn Read + Send>),
}

impl Pass {
    /// The pass that there is, or one that starts.
    fn resume<'a>(pass: &'a mut Option<Self>, level: &Level) -> Result<&'a mut Self, Fault> {
        if pass.is_none() {
            let n = level.layout.offsets.len();
            *pass = Some(Self {
                planes: (0..n)
                    .map(|i| Rows::open(level, i))
                    .collect::<Result<_, _>>()?,
                row: 0,
                samples: Vec::new(),
            });
        }
        pass.as_mut().ok_or_else(|| Fault::new("a pass", "none"))
    }

    /// Decodes a band to RGB.
    fn decode(
        &mut self,
        level: &Level,
        block: Block,
        out: &mut Vec<u8>,
        watch: &Watch,
    ) -> Result<(), Fault> {
        while self.row < block.y && watch.check().is_ok() {
            let rows = STRIDE.min(block.y - self.row);
            for plane in &mut self.planes {
                plane.skip(level, rows, &mut self.samples)?;
            }
            self.row += rows;
        }
        let planar = level.layout.planar;
        for (plane, rows) in self.planes.iter_mut().enumerate() {
            let got = rows.read(level, block.height, &mut self.samples)?;
            level.place(block, planar.then_some(plane), got, &mut self.samples, out);
        }
        self.row += block.height;
        if self.row == level.layout.height {
            self.planes.iter_mut().try_for_each(Rows::finish)?;
        }
        Ok(())
    }
}

impl Rows {
    fn open(level: &Level, plane: usize) -> Result<Self, Fault> {
        let layout = &level.layout;
        let (offset, length) = (layout.offsets[plane], layout.lengths[plane]);
        let section = Section::new(Arc::clone(&level.file), offset, length);
        if layout.codec == Codec::Jpeg {
            let mut jpeg = Box::new(Jpeg::from(&layout.tables, section, layout.colour)?);
            jpeg.start()?;
            return Ok(Self::Jpeg(jpeg));
        }
        let from = BufReader::with_capacity(CHUNK, section);
        Ok(match layout.codec {
            Codec::Png => {
                let pixels = layout.width.saturating_mul(layout.height);
                Self::Png(Box::new(png::open(from, pixels)?))
            }
            Codec::Deflate => Self::Bytes(Box::new(flate2::bufread::ZlibDecoder::new(from))),
            Codec::Lzw => Self::Bytes(Box::new(Lzw::new(from))),
            Codec::PackBits => Self::Bytes(Box::new(PackBits::new(from))),
            Codec::Zstd => {
                let state = zstd::stream::read::Decoder::with_buffer(from);
                let state = state.map_err(|e| Fault::new("a zstd frame", e.to_string()))?;
                Self::Bytes(Box::new(state))
            }
            _ => Self::Bytes(Box::new(from)),
        })
    }

    /// Decodes the next rows, to samples of 8 bits.
    fn read(&mut self, level: &Level, rows: usize, samples: &mut Vec<u8>) -> Result<Got, Fault> {
        let layout = &level.layout;
        match self {
            Self::Jpeg(jpeg) => {
                let row = layout.width * jpeg.info.samples as usize;
                samples.resize(rows * row, 0);
                jpeg.rows(samples)?;
                Ok(jpeg.got(layout.colour))
            }
            Self::Png(reader) => {
                let got = png::got(reader);
                let row = layout.width * got.samples;
                samples.resize(rows * row, 0);
                for to in samples.chunks_exact_mut(row) {
                    let line = reader.next_row().map_err(png::fault)?;
                    let line = line.ok_or_else(|| Fault::new("another row", "the end"))?;
                    to.copy_from_slice(&line.data()[..row]);
                }
                Ok(got)
            }
            Self::Bytes(from) => {
                let shape = layout.shape(layout.width, [rows, rows]);
                samples.resize(shape.bytes[0], 0);
                let got = read_full(from, samples);
                let got = got.map_err(|e| Fault::new("compressed rows", e.to_string()))?;
                if got < samples.len() {
                    let expected = format!("{} bytes more", samples.len());
                    return Err(Fault::new(expected, got.to_string()));
                }
                Ok(settle(layout, shape, samples))
            }
        }
    }

    fn skip(&mut self, level: &Level, rows: usize, samples: &mut Vec<u8>) -> Result<(), Fault> {
        match self {
            Self::Jpeg(jpeg) => jpeg.skip(rows),
            _ => self.read(level, rows, samples).map(drop),
        }
    }

    /// After the last row: checksums and end markers tell whether all was right.
    fn finish(&mut self) -> Result<(), Fault> {
        match self {
            Self::Jpeg(jpeg) => jpeg.finish(),
            Self::Png(_) => Ok(()),
            Self::Bytes(from) => (read_full(from, &mut [0])).map(drop).map_err(|e| {
                let found = e.to_string();
                Fault::new("compressed rows", found)
            }),
        }
    }
}
