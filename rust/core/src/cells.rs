//! Segmented cells per spot: GeoJSON read once, as a stream, each cell counted where it lies.
//!
//! A cell's class comes after its outline in most files, and one feature may hold a
//! million cells (CellViT writes one a class); so what is kept of a feature until its
//! class is known is the spots that were hit, not the outlines. Memory is that and the
//! longest outline, whatever the size of the file.

mod circle;
mod geojson;
mod grid;
mod json;

use std::path::Path;

use crate::error::expect_len;
use crate::{Error, Result, Watch};

use circle::{Moments, overlap};
use geojson::{Feature, Sink, read};
use grid::Grid;

/// Most classes: more are names of cells, not kinds.
const MOST: usize = 4096;

/// The circles that cells are counted in.
#[derive(Debug, Clone, Copy)]
pub struct Spots<'a> {
    /// Centres x, y, x, y, …
    pub xy: &'a [f64],
    /// Radius of each.
    pub radius: &'a [f64],
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A cell whose centroid lies in the circle, or on it, is one.
    Centroid,
    /// The part of a cell's area that lies in the circle.
    Area,
}

/// What was counted.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Names of the classes in the order they were met.
    pub classes: Vec<String>,
    /// Classes × spots.
    pub values: Vec<f64>,
    /// Cells of the file.
    pub cells: u64,
    /// Those that no spot met.
    pub away: u64,
    /// Features that are no cells: without a geometry, or lines.
    pub skipped: u64,
}

/// Counts the cells of a file in each spot; `property` names the one that is the class.
pub fn count(
    path: &Path,
    property: &str,
    spots: Spots<'_>,
    by: By,
    watch: &Watch,
) -> Result<Counts> {
    let mut counter = Counter::new(spots, by)?;
    read(path, property, &mut counter, watch)?;
    Ok(counter.told)
}

/// The join of cells and spots, a feature at a time.
struct Counter<'a> {
    spots: Spots<'a>,
    by: By,
    grid: Grid,
    told: Counts,
    /// Spots hit by the feature's cells so far, and how much of each.
    hits: Vec<(u32, f64)>,
    /// Cells of the feature, and those that hit nothing.
    cells: [u64; 2],
    /// All of the feature's outlines together.
    whole: Moments,
}

impl<'a> Counter<'a> {
    fn new(spots: Spots<'a>, by: By) -> Result<Self> {
        expect_len("spots", spots.xy.len(), 2 * spots.radius.len())?;
        let bad = |v: &f64| !v.is_finite();
        let wrong = spots.radius.iter().find(|r| bad(r) || **r <= 0.0);
        if let Some(found) = wrong.or(spots.xy.iter().find(|v| bad(v))) {
            return Err(Error::Value {
                what: "spots",
                expected: "finite centres and positive radii".into(),
                found: found.to_string(),
            });
        }
        Ok(Self {
            spots,
            by,
            grid: Grid::new(spots),
            told: Counts::default(),
            hits: Vec::new(),
            cells: [0; 2],
            whole: Moments::default(),
        })
    }

    /// Hits every spot that holds a point; whether there is one.
    fn hit_point(&mut self, [x, y]: [f64; 2]) -> bool {
        let (before, spots, hits) = (self.hits.len(), self.spots, &mut self.hits);
        self.grid.near([x, y, x, y], |spot| {
            let (dx, dy) = (spots.xy[2 * spot] - x, spots.xy[2 * spot + 1] - y);
            if dx * dx + dy * dy <= spots.radius[spot] * spots.radius[spot] {
                hits.push((spot as u32, 1.0));
            }
        });
        self.hits.len() > before
    }

    /// Hits every spot that shares area with a polygon; whether there is one.
    fn hit_area(&mut self, points: &[[f64; 2]], ends: &[usize]) -> bool {
        let (before, spots, hits) = (self.hits.len(), self.spots, &mut self.hits);
        let mut bounds = [f64::MAX, f64::MAX, f64::MIN, f64::MIN];
        for &[x, y] in points {
            bounds = [
                bounds[0].min(x),
                bounds[1].min(y),
                bounds[2].max(x),
                bounds[3].max(y),
            ];
        }
        self.grid.near(bounds, |spot| {
            let center = [spots.xy[2 * spot], spots.xy[2 * spot + 1]];
            let shared = overlap(points, ends, center, spots.radius[spot]);
            // Less is what rounding leaves of a sum that is zero.
            if shared > 1e-12 * spots.radius[spot] * spots.radius[spot] {
                hits.push((spot as u32, shared));
            }
        });
        self.hits.len() > before
    }

    fn note(&mut self, hit: bool) {
        self.cells[0] += 1;
        self.cells[1] += u64::from(!hit);
    }

    fn class(&mut self, name: &str) -> Result<usize> {
        if let Some(at) = self.told.classes.iter().position(|known| known == name) {
            return Ok(at);
        }
        if self.told.classes.len() == MOST {
            return Err(Error::Value {
                what: "classes",
                expected: format!("at most {MOST} kinds of cells"),
                found: "more: give the property that is a cell's class".into(),
            });
        }
        self.told.classes.push(name.to_owned());
        let n = self.told.classes.len() * self.spots.radius.len();
        self.told.values.resize(n, 0.0);
        Ok(self.told.classes.len() - 1)
    }

    fn forget(&mut self) {
        self.hits.clear();
        self.cells = [0; 2];
        self.whole = Moments::default();
    }
}

impl Sink for Counter<'_> {
    fn point(&mut self, at: [f64; 2]) {
        if self.by == By::Centroid {
            let hit = self.hit_point(at);
            self.note(hit);
        }
    }

    fn polygon(&mut self, points: &[[f64; 2]], ends: &[usize]) {
        let moments = Moments::of(points, ends);
        self.whole.add(&moments);
        let hit = match self.by {
            By::Centroid => self.hit_point(moments.centroid()),
            By::Area => self.hit_area(points, ends),
        };
        self.note(hit);
    }

    fn end(&mut self, feature: &Feature) -> Result<()> {
        if feature.one_cell && self.cells[0] > 1 {
            let mut hit = self.cells[1] < self.cells[0];
            if self.by == By::Centroid {
                self.hits.clear();
                hit = self.hit_point(self.whole.centroid());
            }
            self.cells = [1, u64::from(!hit)];
        }
        if feature.no_cell || self.cells[0] == 0 {
            self.told.skipped += 1;
            self.forget();
            return Ok(());
        }
        let first = self.class(&feature.class)? * self.spots.radius.len();
        for (spot, amount) in &self.hits {
            self.told.values[first + *spot as usize] += amount;
        }
        self.told.cells += self.cells[0];
        self.told.away += self.cells[1];
        self.forget();
        Ok(())
    }
}
