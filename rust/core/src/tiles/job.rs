//! The sweep over the blocks that cuts all tiles of a call.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::border::extend;
use super::cache::Pixels;
use super::encode::Encoder;
use super::plan::Plan;
use super::resize::Resizer;
use super::shards::Shards;
use super::window::{Window, Windows};
use super::{Border, Options, Report};
use crate::error::Result;
use crate::images::{Block, Blocks, Decoder, RGB, Stream, Turn};
use crate::sweep::sweep;
use crate::{Error, Watch};

/// Tiles of a block that one thread cuts at a time.
const SHARE: usize = 64;

/// Buffers of blocks kept to be used again.
const SPARE: usize = 64;

/// Where tiles go.
pub(super) enum Target<'a> {
    /// Each into its part of an array.
    Array(Vec<Mutex<&'a mut [u8]>>),
    /// Encoded, into files.
    Shards(&'a Shards<'a>),
}

/// A block's pixels while tiles need them.
enum Held {
    /// Not decoded yet, or let go.
    Nothing,
    Pixels(Pixels, Block),
    Bad,
}

/// What one thread keeps between blocks.
#[derive(Default)]
struct Worker {
    decoder: Decoder,
    cutter: Cutter,
}

/// What one thread keeps between tiles.
#[derive(Default)]
struct Cutter {
    window: Vec<u8>,
    tile: Vec<u8>,
    resizer: Resizer,
    encoder: Encoder,
}

/// A call, as its threads share it.
pub(super) struct Job<'a> {
    windows: &'a Windows<'a>,
    plan: &'a Plan,
    options: Options<'a>,
    target: Target<'a>,
    watch: &'a Watch,
    /// The pass over each source that can only be read in one, and its first step.
    streams: Vec<Option<(Stream<'a>, usize)>>,
    held: Vec<Mutex<Held>>,
    /// Tiles that still need each step's block.
    uses: Vec<AtomicU32>,
    /// Blocks that each tile still waits for.
    missing: Vec<AtomicU32>,
    valid: Vec<AtomicU32>,
    spare: Mutex<Vec<Vec<u8>>>,
    faults: Mutex<BTreeMap<usize, String>>,
    bad: Mutex<BTreeMap<usize, usize>>,
    pixels: AtomicU64,
    decoded: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Job<'a> {
    pub(super) fn new(
        windows: &'a Windows<'a>,
        plan: &'a Plan,
        options: Options<'a>,
        target: Target<'a>,
        watch: &'a Watch,
    ) -> Self {
        let firsts = plan.first_steps(windows.sources.len());
        let streams = windows.sources.iter().zip(firsts);
        let missing: Vec<_> = (0..windows.len()).map(|_| AtomicU32::new(0)).collect();
        for step in 0..plan.len() {
            for &tile in plan.tiles(step) {
                missing[tile as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        let uses = |step| AtomicU32::new(plan.tiles(step).len() as u32);
        Self {
            windows,
            plan,
            options,
            target,
            watch,
            streams: streams
                .map(|(blocks, first)| blocks.is_stream().then(|| (Stream::new(*blocks), first)))
                .collect(),
            held: (0..plan.len()).map(|_| Mutex::new(Held::Nothing)).collect(),
            uses: (0..plan.len()).map(uses).collect(),
            missing,
            valid: (0..windows.len()).map(|_| AtomicU32::new(0)).collect(),
            spare: Mutex::default(),
            faults: Mutex::default(),
            bad: Mutex::default(),
            pixels: AtomicU64::new(0),
            decoded: AtomicU64::new(0),
        }
    }

    /// Cuts the wanted tiles.
    pub(super) fn run(self, wanted: impl Fn(usize) -> bool + Sync) -> Result<Report> {
        let alone = |&i: &usize| self.missing[i].load(Ordering::Relaxed) == 0 && wanted(i);
        let alone: Vec<usize> = (0..self.windows.len()).filter(alone).collect();
        sweep(alone.len(), self.watch, Cutter::default, |cutter, i| {
            self.cut(cutter, alone[i])
        })?;
        sweep(self.plan.len(), self.watch, Worker::default, |worker, i| {
            self.step(worker, i)
        })?;
        let faults = self
            .faults
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let bad = self
            .bad
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(Report {
            blocks: self.plan.len() as u64,
            pixels: self.pixels.into_inner(),
            decoded: self.decoded.into_inner(),
            valid: (self.valid.into_iter())
                .map(|v| f32::from_bits(v.into_inner()))
                .collect(),
            bad: (bad.into_iter())
                .map(|(tile, step)| (tile, faults[&step].clone()))
                .collect(),
        })
    }

    /// Decodes the block of a step, and cuts the tiles that waited for it alone.
    fn step(&self, worker: &mut Worker, step: usize) -> Result<()> {
        let (source, index) = self.plan.block(step);
        let block = self.windows.sources[source].block(index);
        let pixels = (block.width * block.height) as u64;
        self.pixels.fetch_add(pixels, Ordering::Relaxed);
        let held = match self.fetch(&mut worker.decoder, step) {
            Ok((pixels, block)) => Held::Pixels(pixels, block),
            Err(fault @ (Error::Format { .. } | Error::Unsupported { .. } | Error::Io { .. }))
                if self.options.lenient =>
            {
                lock(&self.faults).insert(step, fault.to_string());
                Held::Bad
            }
            Err(error) => return Err(error),
        };
        *lock(&self.held[step]) = held;
        // AcqRel: whoever takes a tile's count to 0 sees all of its blocks.
        let ready = |&&tile: &&u32| self.missing[tile as usize].fetch_sub(1, Ordering::AcqRel) == 1;
        let tiles: Vec<u32> = self
            .plan
            .tiles(step)
            .iter()
            .filter(ready)
            .copied()
            .collect();
        if tiles.len() <= SHARE {
            return tiles
                .iter()
                .try_for_each(|&tile| self.cut(&mut worker.cutter, tile as usize));
        }
        (tiles.par_chunks(SHARE)).try_for_each_init(Cutter::default, |cutter, tiles| {
            tiles
                .iter()
                .try_for_each(|&tile| self.cut(cutter, tile as usize))
        })
    }

    /// The pixels of a step's block: from the cache, from a pass, or decoded; and what
    /// part of it they are.
    fn fetch(&self, decoder: &mut Decoder, step: usize) -> Result<(Pixels, Block)> {
        let (source, index) = self.plan.block(step);
        let blocks = &self.windows.sources[source];
        let (whole, cache) = (blocks.block(index), self.options.cache);
        let kept = || cache.and_then(|cache| cache.get(blocks.level().id, index));
        let turn = match &self.streams[source] {
            Some((stream, first)) => Some(stream.turn(step - first, self.watch)?),
            None => None,
        };
        if let Some(pixels) = kept() {
            return Ok((pixels, whole));
        }
        let mut buffer = lock(&self.spare).pop().unwrap_or_default();
        let (block, decoded) = match turn {
            Some(turn) => (whole, self.pass_to(turn, blocks, index, &mut buffer)?),
            // What is kept for other calls is kept whole.
            None if cache.is_some() => (
                whole,
                blocks.decode(index, decoder, &mut buffer, self.watch)?,
            ),
            None => {
                let wanted = self.wanted(step);
                blocks.decode_part(index, wanted, decoder, &mut buffer, self.watch)?
            }
        };
        self.decoded.fetch_add(decoded, Ordering::Relaxed);
        Ok((self.keep(blocks, index, buffer), block))
    }

    /// The columns and rows of a step's block that some tile shows.
    fn wanted(&self, step: usize) -> [Range<usize>; 2] {
        let (source, index) = self.plan.block(step);
        let block = self.windows.sources[source].block(index);
        let (mut first, mut end) = ([usize::MAX; 2], [0; 2]);
        for &tile in self.plan.tiles(step) {
            let one = self.windows.at(tile as usize).within(block);
            for (axis, one) in one.into_iter().enumerate() {
                first[axis] = first[axis].min(one.start);
                end[axis] = end[axis].max(one.end);
            }
        }
        [first[0]..end[0], first[1]..end[1]]
    }

    /// Takes a pass to a block. With a cache, what it comes by is kept for later calls.
    fn pass_to(
        &self,
        mut turn: Turn<'_>,
        blocks: &Blocks<'_>,
        index: usize,
        out: &mut Vec<u8>,
    ) -> Result<u64> {
        let mut decoded = 0;
        let first = match self.options.cache {
            Some(_) => turn.next_block(),
            None => index,
        };
        for passed in first..index {
            let mut buffer = Vec::new();
            decoded += turn.decode(passed, &mut buffer, self.watch)?;
            self.keep(blocks, passed, buffer);
        }
        Ok(decoded + turn.decode(index, out, self.watch)?)
    }

    fn keep(&self, blocks: &Blocks<'_>, index: usize, pixels: Vec<u8>) -> Pixels {
        let pixels = Arc::new(pixels);
        if let Some(cache) = self.options.cache {
            cache.keep(blocks.level().id, index, &pixels);
        }
        pixels
    }

    /// Cuts one tile, all of whose blocks are there, to where it belongs.
    fn cut(&self, cutter: &mut Cutter, tile: usize) -> Result<()> {
        self.watch.check()?;
        let window = self.windows.at(tile);
        match &self.target {
            Target::Array(slots) => {
                self.render(cutter, tile, &window, &mut lock(&slots[tile]));
            }
            Target::Shards(shards) => {
                let mut pixels = std::mem::take(&mut cutter.tile);
                pixels.resize(window.tile_bytes(), 0);
                self.render(cutter, tile, &window, &mut pixels);
                let told = (self.valid(tile), self.fault(tile));
                shards.put(tile, window.size, &pixels, told, &mut cutter.encoder)?;
                cutter.tile = pixels;
            }
        }
        self.watch.advance(1);
        Ok(())
    }

    fn valid(&self, tile: usize) -> f32 {
        f32::from_bits(self.valid[tile].load(Ordering::Relaxed))
    }

    /// What is wrong with the first damaged block of a tile.
    fn fault(&self, tile: usize) -> Option<String> {
        let step = *lock(&self.bad).get(&tile)?;
        lock(&self.faults).get(&step).cloned()
    }

    fn render(&self, cutter: &mut Cutter, tile: usize, window: &Window<'_>, out: &mut [u8]) {
        if window.is_plain() {
            self.gather(tile, window, out);
            return;
        }
        let mut pixels = std::mem::take(&mut cutter.window);
        pixels.resize(window.width * window.height * RGB, 0);
        self.gather(tile, window, &mut pixels);
        cutter
            .resizer
            .resize(window, self.options.filter, &pixels, out);
        cutter.window = pixels;
    }

    /// Puts a window's rectangle together from its blocks, and lets go of those that
    /// no other tile needs.
    fn gather(&self, tile: usize, window: &Window<'_>, out: &mut [u8]) {
        let (source, mut copied) = (self.windows.source[tile], 0);
        let whole = window.width * window.height;
        let visible = window.visible();
        if visible[0].len() * visible[1].len() < whole {
            out.fill(self.options.fill);
        }
        for index in window.touched() {
            let step = self.plan.step(source, index);
            let pixels = match &*lock(&self.held[step]) {
                Held::Pixels(pixels, block) => Some((Arc::clone(pixels), *block)),
                _ => None,
            };
            match pixels {
                Some((pixels, block)) => copied += window.copy(block, &pixels, out),
                None => self.mark_bad(tile, step, window, index, out),
            }
            self.let_go(step);
        }
        if self.options.border != Border::Fill {
            extend(out, window.width, &visible, self.options.border);
        }
        let valid = copied as f32 / whole as f32;
        self.valid[tile].store(valid.to_bits(), Ordering::Relaxed);
    }

    fn mark_bad(
        &self,
        tile: usize,
        step: usize,
        window: &Window<'_>,
        index: usize,
        out: &mut [u8],
    ) {
        window.blank(window.blocks.block(index), self.options.fill, out);
        lock(&self.bad).entry(tile).or_insert(step);
    }

    fn let_go(&self, step: usize) {
        if self.uses[step].fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let held = std::mem::replace(&mut *lock(&self.held[step]), Held::Nothing);
        if let Held::Pixels(pixels, _) = held
            && let Ok(buffer) = Arc::try_unwrap(pixels)
        {
            let mut spare = lock(&self.spare);
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        }
    }
}
