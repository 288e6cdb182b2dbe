//! Tiles cut from images: each touched block decoded once, for every tile on it.
//!
//! Blocks, not tiles, are the unit of work. From the windows follows which
//! blocks are touched and by which tiles; threads sweep the blocks in file
//! order, and whoever decodes the last block of a tile cuts it. A block is held
//! until its last tile is cut: memory is the blocks along the front, whatever
//! the number of tiles and however much they overlap.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Watch;
use crate::error::{Result, expect_len};
use crate::images::Decoder;
use crate::sweep::sweep;

mod border;
mod cache;
mod encode;
mod job;
mod plan;
mod resize;
mod shards;
mod window;

pub use border::Border;
pub use cache::Cache;
pub use encode::Encoding;
pub use resize::{Filter, resize};
pub use shards::{Container, Shards, Texts};
pub use window::Windows;

use job::{Job, Target};
use plan::Plan;

/// How tiles are cut.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Grey level of what is outside the picture, or damaged.
    pub fill: u8,
    /// What is made of what is outside.
    pub border: Border,
    /// How a window becomes a tile of another size.
    pub filter: Filter,
    /// Whether a block that cannot be decoded leaves its pixels filled.
    pub lenient: bool,
    /// Decoded blocks kept between calls.
    pub cache: Option<&'a Cache>,
}

/// What a call did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Blocks that some window meets.
    pub blocks: u64,
    /// Pixels of those blocks inside their levels.
    pub pixels: u64,
    /// Pixels decoded.
    pub decoded: u64,
    /// Share of each window that is pixels of the picture.
    pub valid: Vec<f32>,
    /// Tiles that a damaged block belongs to, and the fault of the first such block.
    pub bad: BTreeMap<usize, String>,
}

/// Cuts one tile a window into `out` (tiles × size × size × 3).
pub fn extract(
    windows: &Windows<'_>,
    options: Options<'_>,
    out: &mut [u8],
    watch: &Watch,
) -> Result<Report> {
    let windows = windows.checked()?;
    let bytes: Vec<usize> = (0..windows.len())
        .map(|i| windows.at(i).tile_bytes())
        .collect();
    expect_len("out", out.len(), bytes.iter().sum())?;
    let mut rest = out;
    let mut slots = Vec::with_capacity(bytes.len());
    for bytes in bytes {
        let (tile, after) = rest.split_at_mut(bytes);
        slots.push(Mutex::new(tile));
        rest = after;
    }
    let plan = Plan::of(&windows, |_| true);
    Job::new(&windows, &plan, options, Target::Array(slots), watch).run(|_| true)
}

/// Tiles in the order in which [`write()`] writes them: as their last blocks lie in
/// the picture.
pub fn order(windows: &Windows<'_>) -> Result<Vec<u32>> {
    let windows = windows.checked()?;
    Ok(Plan::of(&windows, |_| true).order(windows.len()))
}

/// Pixels a second that the codec decodes on all threads, of some of the blocks that
/// windows meet, and nothing done with them: what [`extract`] can at most reach.
pub fn codec_rate(windows: &Windows<'_>, most: Duration, watch: &Watch) -> Result<f64> {
    let windows = windows.checked()?;
    let plan = Plan::of(&windows, |_| true);
    let steps = plan.len().min(64 * rayon::current_num_threads());
    let (start, decoded) = (Instant::now(), AtomicU64::new(0));
    let body = |(decoder, out): &mut (Decoder, Vec<u8>), i: usize| {
        if start.elapsed() < most {
            let (source, block) = plan.block(i * plan.len() / steps);
            let pixels = windows.sources[source].decode(block, decoder, out, watch)?;
            decoded.fetch_add(pixels, Ordering::Relaxed);
        }
        Ok(())
    };
    sweep(steps, watch, Default::default, body)?;
    Ok(decoded.into_inner() as f64 / start.elapsed().as_secs_f64())
}

/// Cuts, encodes and writes the tiles of all shards that are not there yet.
pub fn write(
    windows: &Windows<'_>,
    options: Options<'_>,
    shards: &Shards<'_>,
    watch: &Watch,
) -> Result<Report> {
    let windows = windows.checked()?;
    let wanted = |tile: usize| shards.wants(tile);
    let plan = Plan::of(&windows, wanted);
    Job::new(&windows, &plan, options, Target::Shards(shards), watch).run(wanted)
}
