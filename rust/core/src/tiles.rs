//! Tiles cut from images: each touched block decoded once, for every tile on it.
//!
//! Blocks, not tiles, are the unit of work. From the windows follows which
//! blocks are touched and by which tiles; threads sweep the blocks in file
//! order, decode one, and copy from it into each tile that meets it. A tile
//! whose window has another size than the tile waits in a buffer of its own
//! until its last block has come, then is resized; the sweep keeps the number
//! of waiting windows to those that the front crosses.

use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use crate::error::{Result, expect_len};
use crate::images::{Block, Decoder, Level, RGB};
use crate::sweep::sweep;
use crate::{Error, Watch};

mod resize;
mod window;

pub use window::{Source, Windows};

use resize::Resizer;
use window::Window;

/// Tiles of a block that one thread cuts at a time.
const SHARE: usize = 64;

/// What a call did, for the line of truth at its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks that some window meets.
    pub blocks: u64,
    /// Pixels of those blocks.
    pub pixels: u64,
    /// Pixels decoded: less than the above by what a cache held.
    pub decoded: u64,
}

/// Decoded blocks kept between calls, by level and block, up to a size in bytes.
#[derive(Debug)]
pub struct Cache {
    blocks: quick_cache::sync::Cache<(u64, usize), Arc<Vec<u8>>, BySize>,
}

#[derive(Debug, Clone)]
struct BySize;

impl quick_cache::Weighter<(u64, usize), Arc<Vec<u8>>> for BySize {
    fn weight(&self, _: &(u64, usize), block: &Arc<Vec<u8>>) -> u64 {
        block.len() as u64
    }
}

impl Cache {
    /// A cache of at most `bytes` of decoded pixels.
    pub fn new(bytes: u64) -> Self {
        let items = (bytes >> 16).clamp(64, 1 << 20) as usize;
        let blocks = quick_cache::sync::Cache::with_weighter(items, bytes, BySize);
        Self { blocks }
    }
}

/// Cuts one tile a window into `out` (tiles × size × size × 3).
///
/// What lies outside the image is filled with `fill`, a grey level.
pub fn extract(
    windows: &Windows<'_>,
    fill: u8,
    cache: Option<&Cache>,
    out: &mut [u8],
    watch: &Watch,
) -> Result<Stats> {
    let windows = windows.checked()?;
    let tile = windows.size * windows.size * RGB;
    expect_len("out", out.len(), windows.len() * tile)?;
    let touched = Touched::by(&windows);
    let slots: Vec<_> = (out.par_chunks_exact_mut(tile).enumerate())
        .map(|(i, out)| Mutex::new(Slot::new(&windows.at(i), fill, out)))
        .collect();
    let job = Job {
        windows: &windows,
        slots: &slots,
        touched: &touched,
        fill,
        cache,
        watch,
    };
    let stats: Mutex<Stats> = Mutex::default();
    sweep(touched.len(), watch, Worker::default, |worker, i| {
        let one = job.cut_block(worker, i)?;
        let mut all = stats.lock().unwrap_or_else(|e| e.into_inner());
        all.blocks += one.blocks;
        all.pixels += one.pixels;
        all.decoded += one.decoded;
        Ok(())
    })?;
    Ok(stats.into_inner().unwrap_or_else(|e| e.into_inner()))
}

/// Which tiles meet which block, blocks in the order they lie in the files.
struct Touched {
    /// Source, block and tile, sorted.
    meetings: Vec<(u32, u32, u32)>,
    /// Where each block's run starts; one more than there are blocks.
    starts: Vec<usize>,
}

impl Touched {
    fn by(windows: &Windows<'_>) -> Self {
        let mut meetings: Vec<_> = (0..windows.len())
            .into_par_iter()
            .flat_map_iter(|i| {
                let window = windows.at(i);
                let source = windows.source[i];
                (window.blocks()).map(move |block| (source, block as u32, i as u32))
            })
            .collect();
        meetings.par_sort_unstable();
        let mut starts: Vec<usize> = (0..meetings.len())
            .filter(|&i| {
                i == 0 || meetings[i - 1].0 != meetings[i].0 || meetings[i - 1].1 != meetings[i].1
            })
            .collect();
        starts.push(meetings.len());
        Self { meetings, starts }
    }

    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    fn run(&self, i: usize) -> &[(u32, u32, u32)] {
        &self.meetings[self.starts[i]..self.starts[i + 1]]
    }
}

/// A tile on its way.
struct Slot<'a> {
    out: &'a mut [u8],
    /// The window's pixels while some are missing; empty if they go straight out.
    waiting: Vec<u8>,
    /// Blocks still to come.
    missing: usize,
}

impl<'a> Slot<'a> {
    fn new(window: &Window<'_>, fill: u8, out: &'a mut [u8]) -> Self {
        let missing = window.blocks().count();
        if missing == 0 || (window.is_plain() && !window.is_inside()) {
            out.fill(fill);
        }
        Self {
            out,
            waiting: Vec::new(),
            missing,
        }
    }
}

/// What one thread keeps between blocks.
#[derive(Default)]
struct Worker {
    decoder: Decoder,
    pixels: Vec<u8>,
    resizer: Resizer,
}

/// The arguments of [`extract`], as its threads share them.
struct Job<'a, 'o> {
    windows: &'a Windows<'a>,
    slots: &'a [Mutex<Slot<'o>>],
    touched: &'a Touched,
    fill: u8,
    cache: Option<&'a Cache>,
    watch: &'a Watch,
}

impl Job<'_, '_> {
    /// Decodes the `i`-th touched block and serves each tile that meets it.
    fn cut_block(&self, worker: &mut Worker, i: usize) -> Result<Stats> {
        let meetings = self.touched.run(i);
        let (source, index, _) = meetings[0];
        let level = self.windows.sources[source as usize].level;
        let block = level.block(index as usize);
        let pixels = (block.width * block.height) as u64;
        let mut stats = Stats {
            blocks: 1,
            pixels,
            decoded: 0,
        };
        if let Some(cache) = self.cache {
            let pixels = self.cached(cache, worker, level, index as usize, &mut stats)?;
            self.serve(&mut worker.resizer, block, &pixels, meetings)?;
            return Ok(stats);
        }
        let mut buffer = std::mem::take(&mut worker.pixels);
        level.decode(index as usize, &mut worker.decoder, &mut buffer, self.watch)?;
        stats.decoded = pixels;
        self.serve(&mut worker.resizer, block, &buffer, meetings)?;
        worker.pixels = buffer;
        Ok(stats)
    }

    fn cached(
        &self,
        cache: &Cache,
        worker: &mut Worker,
        level: &Level,
        index: usize,
        stats: &mut Stats,
    ) -> Result<Arc<Vec<u8>>> {
        if let Some(pixels) = cache.blocks.get(&(level.id, index)) {
            return Ok(pixels);
        }
        let mut pixels = Vec::new();
        level.decode(index, &mut worker.decoder, &mut pixels, self.watch)?;
        stats.decoded = stats.pixels;
        let pixels = Arc::new(pixels);
        cache.blocks.insert((level.id, index), Arc::clone(&pixels));
        Ok(pixels)
    }

    /// Copies from a decoded block into each tile that meets it.
    ///
    /// A block with many tiles (a whole plain JPEG) is shared out among threads.
    fn serve(
        &self,
        resizer: &mut Resizer,
        block: Block,
        pixels: &[u8],
        meetings: &[(u32, u32, u32)],
    ) -> Result<()> {
        if meetings.len() <= SHARE {
            self.cut_tiles(resizer, block, pixels, meetings);
            return Ok(());
        }
        (meetings.par_chunks(SHARE)).try_for_each_init(Resizer::default, |resizer, meetings| {
            self.watch.check()?;
            self.cut_tiles(resizer, block, pixels, meetings);
            Ok(())
        })
    }

    fn cut_tiles(
        &self,
        resizer: &mut Resizer,
        block: Block,
        pixels: &[u8],
        meetings: &[(u32, u32, u32)],
    ) {
        for &(_, _, tile) in meetings {
            let window = self.windows.at(tile as usize);
            let mut slot = (self.slots[tile as usize].lock()).unwrap_or_else(|e| e.into_inner());
            let slot = &mut *slot;
            slot.missing -= 1;
            if window.is_plain() {
                window.copy(block, pixels, slot.out);
            } else {
                if slot.waiting.is_empty() {
                    let bytes = window.width * window.height * RGB;
                    slot.waiting.resize(bytes, self.fill);
                }
                window.copy(block, pixels, &mut slot.waiting);
                if slot.missing == 0 {
                    let waiting = std::mem::take(&mut slot.waiting);
                    resizer.resize(&window, &waiting, slot.out);
                }
            }
            if slot.missing == 0 {
                self.watch.advance(1);
            }
        }
    }
}

/// A window's own error, by the tile it belongs to.
fn bad_window(tile: usize, found: String) -> Error {
    Error::Value {
        what: "window",
        expected: "a finite corner within 2³¹ pixels of the image".into(),
        found: format!("{found} for tile {tile}"),
    }
}
