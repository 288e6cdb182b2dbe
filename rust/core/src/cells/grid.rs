//! Spots by the square of a grid they lie in, so that a cell asks only its neighbours.

use super::Spots;

/// Spots sorted by square.
pub(super) struct Grid {
    corner: [f64; 2],
    pitch: f64,
    size: [usize; 2],
    reach: f64,
    /// Where each square's spots start in `spots`.
    starts: Vec<u32>,
    spots: Vec<u32>,
}

impl Grid {
    pub(super) fn new(spots: Spots<'_>) -> Self {
        let n = spots.radius.len();
        let reach = spots.radius.iter().copied().fold(0.0, f64::max);
        let mut low = [f64::MAX; 2];
        let mut high = [f64::MIN; 2];
        for center in spots.xy.chunks_exact(2) {
            for axis in 0..2 {
                low[axis] = low[axis].min(center[axis]);
                high[axis] = high[axis].max(center[axis]);
            }
        }
        let sides = [0, 1].map(|axis| (high[axis] - low[axis]).max(0.0));
        // No finer than the spots' density: a grid has at most some squares a spot.
        let fine = (sides[0] * sides[1] / n.max(1) as f64).sqrt();
        let long = sides[0].max(sides[1]) / (4 * n.max(1)) as f64;
        let pitch = reach.max(fine).max(long).max(f64::MIN_POSITIVE);
        let size = sides.map(|side| (side / pitch) as usize + 1);
        let mut grid = Self {
            corner: low,
            pitch,
            size,
            reach,
            starts: vec![0; size[0] * size[1] + 1],
            spots: vec![0; n],
        };
        grid.sort(spots);
        grid
    }

    fn sort(&mut self, spots: Spots<'_>) {
        let squares: Vec<usize> = (spots.xy.chunks_exact(2))
            .map(|c| self.square(1, c[1]) * self.size[0] + self.square(0, c[0]))
            .collect();
        for &square in &squares {
            self.starts[square + 1] += 1;
        }
        for square in 1..self.starts.len() {
            self.starts[square] += self.starts[square - 1];
        }
        let mut next = self.starts.clone();
        for (spot, &square) in squares.iter().enumerate() {
            self.spots[next[square] as usize] = spot as u32;
            next[square] += 1;
        }
    }

    /// The row or column of a coordinate, the nearest one for those outside.
    fn square(&self, axis: usize, at: f64) -> usize {
        let square = (at - self.corner[axis]) / self.pitch;
        (square.max(0.0) as usize).min(self.size[axis] - 1)
    }

    /// Calls `visit` with each spot whose circle may meet a box (left, top, right, bottom).
    pub(super) fn near(&self, bounds: [f64; 4], mut visit: impl FnMut(usize)) {
        if self.spots.is_empty() {
            return;
        }
        let [left, top, right, bottom] = bounds;
        let columns = self.square(0, left - self.reach)..=self.square(0, right + self.reach);
        for row in self.square(1, top - self.reach)..=self.square(1, bottom + self.reach) {
            let first = self.starts[row * self.size[0] + columns.start()];
            let end = self.starts[row * self.size[0] + columns.end() + 1];
            for &spot in &self.spots[first as usize..end as usize] {
                visit(spot as usize);
            }
        }
    }
}
