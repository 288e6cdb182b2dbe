//! Local regression in one dimension, as R's and skmisc's `loess` interpolate it.
//!
//! Points are divided into cells at medians until a cell has few; a weighted quadratic
//! is fitted at each border of cells, over its nearest neighbours, and within a cell the
//! curve is the cubic that has the fitted values and slopes at both ends (Cleveland and
//! Grosse 1991: the kd tree with blending, of which this is the one-dimensional case).
//! Where neighbours lie at too few places for a quadratic, the answer is a direct fit
//! at each point, of the degree they allow, and says so.

use rayon::prelude::*;

use crate::error::{Result, expect_len};
use crate::{Error, Watch};

/// Share of a neighbourhood below which a cell is not divided further.
const CELL: f64 = 0.2;
/// How far the outer borders lie beyond the points, in ranges of the points.
const MARGIN: f64 = 0.005;
/// Below this ratio of what is left of a term to the term, its direction is not there.
const LEAST: f64 = 1e-7;

/// A curve at the points it was fitted to.
#[derive(Debug)]
pub struct Fit {
    /// Its value at each point.
    pub fitted: Vec<f64>,
    /// Whether some quadratic was undetermined, so that each point was fitted directly.
    pub direct: bool,
}

/// Fits `y` over `x` by local quadratics over the nearest `span` of all points.
pub fn loess(x: &[f64], y: &[f64], span: f64, watch: &Watch) -> Result<Fit> {
    check(x, y, span)?;
    if x.is_empty() {
        return Ok(Fit {
            fitted: Vec::new(),
            direct: false,
        });
    }
    let points = Points::new(x, y, span);
    let borders = points.borders((x.len() as f64 * span * CELL) as usize);
    let ends = at_each(&borders, watch, |at| points.fit(at))?;
    if ends.iter().all(|end| end.full) {
        let fitted = x.iter().map(|&x| blend(&borders, &ends, x)).collect();
        return Ok(Fit {
            fitted,
            direct: false,
        });
    }
    // Points that share a place share a fit.
    let mut places = points.x.clone();
    places.dedup();
    let fits = at_each(&places, watch, |at| points.fit(at))?;
    let value = |x: &f64| fits[places.partition_point(|place| place < x)].value;
    let fitted = x.iter().map(value).collect();
    Ok(Fit {
        fitted,
        direct: true,
    })
}

fn check(x: &[f64], y: &[f64], span: f64) -> Result<()> {
    expect_len("y of a local regression", y.len(), x.len())?;
    if !(span > 0.0 && span <= 1.0) {
        return Err(Error::Value {
            what: "span",
            expected: "a number above 0 and at most 1".into(),
            found: span.to_string(),
        });
    }
    if let Some(bad) = x.iter().chain(y).find(|v| !v.is_finite()) {
        return Err(Error::Value {
            what: "points of a local regression",
            expected: "finite numbers".into(),
            found: bad.to_string(),
        });
    }
    Ok(())
}

fn at_each(at: &[f64], watch: &Watch, fit: impl Fn(f64) -> Local + Sync) -> Result<Vec<Local>> {
    (at.par_iter())
        .map(|&at| watch.check().map(|()| fit(at)))
        .collect()
}

/// The value and slope of a local fit, and whether it was a full quadratic.
#[derive(Clone, Copy)]
struct Local {
    value: f64,
    slope: f64,
    full: bool,
}

impl Local {
    fn new(value: f64, slope: f64, full: bool) -> Self {
        Self { value, slope, full }
    }
}

/// Points in ascending order of `x`.
struct Points {
    x: Vec<f64>,
    y: Vec<f64>,
    near: usize,
}

impl Points {
    fn new(x: &[f64], y: &[f64], span: f64) -> Self {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| x[a].total_cmp(&x[b]).then(a.cmp(&b)));
        // A hair more, so that 0.3 of 10 is 3.
        let near = (x.len() as f64 * span + 1e-5) as usize;
        Self {
            x: order.iter().map(|&i| x[i]).collect(),
            y: order.iter().map(|&i| y[i]).collect(),
            near: near.clamp(1, x.len()),
        }
    }

    /// Borders of the cells, ascending: cells of at most `few` points are not divided.
    fn borders(&self, few: usize) -> Vec<f64> {
        let (low, high) = (self.x[0], self.x[self.x.len() - 1]);
        let least = 1e-10 * low.abs().max(high.abs()) + 1e-30;
        let margin = MARGIN * (high - low).max(least);
        let (low, high) = (low - margin, high + margin);
        let mut borders = vec![low, high];
        let mut cells = vec![(0, self.x.len() - 1, low, high)];
        while let Some((first, last, low, high)) = cells.pop() {
            if last - first < few.max(1) {
                continue;
            }
            if let Some(cut) = self.cut(first, last).filter(|&c| self.x[c] < high) {
                let border = self.x[cut];
                if border > low {
                    borders.push(border);
                    cells.push((first, cut, low, border));
                    cells.push((cut + 1, last, border, high));
                }
            }
        }
        borders.sort_by(f64::total_cmp);
        borders
    }

    /// The last point of a cell's lower half: where `x` changes next to the median, the
    /// nearest such place, the one above first.
    fn cut(&self, first: usize, last: usize) -> Option<usize> {
        let middle = (first + last) / 2;
        let around = (0..=middle).flat_map(|away| [middle + away, middle - away]);
        around
            .take_while(|&at| first <= at && at < last)
            .find(|&at| self.x[at] != self.x[at + 1])
    }

    /// The nearest points of a place, and the distance of the farthest of them.
    fn neighbours(&self, at: f64) -> (std::ops::Range<usize>, f64) {
        let above = self.x.partition_point(|&x| x < at);
        let (mut first, mut last) = (above, above);
        while last - first < self.near {
            let down = first
                .checked_sub(1)
                .map_or(f64::INFINITY, |i| at - self.x[i]);
            let up = self.x.get(last).map_or(f64::INFINITY, |x| x - at);
            if down <= up {
                first -= 1;
            } else {
                last += 1;
            }
        }
        // Those as far as the farthest: they count where all are equally far.
        while first > 0 && self.x[first - 1] == self.x[first] {
            first -= 1;
        }
        while last < self.x.len() && self.x[last] == self.x[last - 1] {
            last += 1;
        }
        let radius = (at - self.x[first]).max(self.x[last - 1] - at);
        (first..last, radius)
    }

    /// The nearest points of a place, as weight, place within the radius, and `y`.
    fn weighted(&self, at: f64) -> (Vec<[f64; 3]>, f64) {
        let (near, radius) = self.neighbours(at);
        let radius = if radius > 0.0 { radius } else { 1.0 };
        let terms = near.map(|i| ((self.x[i] - at) / radius, self.y[i]));
        let mut points: Vec<[f64; 3]> = terms.map(|(u, y)| [tricube(u.abs()), u, y]).collect();
        if points.iter().all(|p| p[0] == 0.0) {
            // All are as far as the farthest.
            points.iter_mut().for_each(|p| p[0] = 1.0);
        }
        (points, radius)
    }

    /// A weighted quadratic over the nearest points, by orthogonal polynomials.
    fn fit(&self, at: f64) -> Local {
        let (points, radius) = self.weighted(at);
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            points.iter().map(|&[w, u, y]| w * f(u, y)).sum()
        };
        let n = sum(&|_, _| 1.0);
        let (mean, y_mean) = (sum(&|u, _| u) / n, sum(&|_, y| y) / n);
        let line = |u: f64| u - mean;
        let spread = sum(&|u, _| line(u).powi(2));
        if spread <= LEAST * LEAST * sum(&|u, _| u * u) || spread == 0.0 {
            return Local::new(y_mean, 0.0, false);
        }
        let b = sum(&|u, y| line(u) * (y - y_mean)) / spread;
        let (value, slope) = (y_mean + b * line(0.0), b / radius);
        let skew = sum(&|u, _| line(u).powi(3)) / spread;
        let curve = |u: f64| line(u) * (line(u) - skew) - spread / n;
        let squares = sum(&|u, _| curve(u).powi(2));
        if squares <= LEAST * LEAST * sum(&|u, _| line(u).powi(4)) {
            return Local::new(value, slope, false);
        }
        let c = sum(&|u, y| curve(u) * (y - y_mean - b * line(u))) / squares;
        let bend = c * (2.0 * line(0.0) - skew) / radius;
        Local::new(value + c * curve(0.0), slope + bend, true)
    }
}

/// Cleveland's weight of a neighbour at a share of the radius.
fn tricube(u: f64) -> f64 {
    match u {
        _ if u >= 0.999 => 0.0,
        _ if u <= 0.001 => 1.0,
        _ => (1.0 - u * u * u).powi(3),
    }
}

/// The cubic with the values and slopes of the two borders around `x`.
fn blend(borders: &[f64], ends: &[Local], x: f64) -> f64 {
    let upper = borders
        .partition_point(|&b| b <= x)
        .clamp(1, borders.len() - 1);
    let (a, b) = (ends[upper - 1], ends[upper]);
    let width = borders[upper] - borders[upper - 1];
    let h = (x - borders[upper - 1]) / width;
    let g = 1.0 - h;
    g * g * (1.0 + 2.0 * h) * a.value
        + h * h * (1.0 + 2.0 * g) * b.value
        + h * g * (g * a.slope - h * b.slope) * width
}
