//! Decoded blocks kept between calls, by level and block, up to a size in bytes.

use std::sync::Arc;

/// Pixels that several tiles, threads or calls look at.
pub(super) type Pixels = Arc<Vec<u8>>;

/// Decoded blocks kept between calls.
#[derive(Debug)]
pub struct Cache {
    blocks: quick_cache::sync::Cache<(u64, usize), Pixels, BySize>,
}

#[derive(Debug, Clone)]
struct BySize;

impl quick_cache::Weighter<(u64, usize), Pixels> for BySize {
    fn weight(&self, _: &(u64, usize), block: &Pixels) -> u64 {
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

    pub(super) fn get(&self, level: u64, block: usize) -> Option<Pixels> {
        self.blocks.get(&(level, block))
    }

    pub(super) fn keep(&self, level: u64, block: usize, pixels: &Pixels) {
        self.blocks.insert((level, block), Arc::clone(pixels));
    }
}
