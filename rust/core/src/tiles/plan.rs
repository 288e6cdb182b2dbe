//! Which blocks are touched, and by which tiles.

use rayon::prelude::*;

use super::window::Windows;

/// The touched blocks in the order they lie in the levels, one a step.
pub(super) struct Plan {
    /// Source and block of each step.
    steps: Vec<(u32, u32)>,
    /// Where each step's run of tiles starts; one more than there are steps.
    starts: Vec<usize>,
    /// Tiles that meet the block of a step, ascending, step after step.
    tiles: Vec<u32>,
}

impl Plan {
    /// Meets windows and blocks; only those windows for which `wanted` says so.
    pub(super) fn of(windows: &Windows<'_>, wanted: impl Fn(usize) -> bool + Sync) -> Self {
        let mut meetings: Vec<_> = (0..windows.len())
            .into_par_iter()
            .filter(|&i| wanted(i))
            .flat_map_iter(|i| {
                let source = windows.source[i];
                let touched = windows.at(i).touched();
                touched.map(move |block| (source, block as u32, i as u32))
            })
            .collect();
        meetings.par_sort_unstable();
        let mut plan = Self {
            steps: Vec::new(),
            starts: Vec::new(),
            tiles: Vec::with_capacity(meetings.len()),
        };
        for (at, (source, block, tile)) in meetings.into_iter().enumerate() {
            if plan.steps.last() != Some(&(source, block)) {
                plan.steps.push((source, block));
                plan.starts.push(at);
            }
            plan.tiles.push(tile);
        }
        plan.starts.push(plan.tiles.len());
        plan
    }

    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Source and block of a step.
    pub(super) fn block(&self, step: usize) -> (usize, usize) {
        let (source, block) = self.steps[step];
        (source as usize, block as usize)
    }

    /// Tiles that meet the block of a step.
    pub(super) fn tiles(&self, step: usize) -> &[u32] {
        &self.tiles[self.starts[step]..self.starts[step + 1]]
    }

    /// The step of a block that some tile meets.
    pub(super) fn step(&self, source: u32, block: usize) -> usize {
        self.steps
            .partition_point(|&step| step < (source, block as u32))
    }

    /// The first step of each source, and where the last one's end.
    pub(super) fn first_steps(&self, sources: usize) -> Vec<usize> {
        let first = |source| self.steps.partition_point(|&(s, _)| (s as usize) < source);
        (0..=sources).map(first).collect()
    }

    /// Tiles in the order in which a sweep over the blocks completes them, those
    /// that meet no block first.
    pub(super) fn order(&self, n: usize) -> Vec<u32> {
        let mut last = vec![0; n];
        for step in 0..self.len() {
            for &tile in self.tiles(step) {
                last[tile as usize] = step as u32 + 1;
            }
        }
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.par_sort_unstable_by_key(|&tile| (last[tile as usize], tile));
        order
    }
}
