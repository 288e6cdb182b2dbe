//! A window's pixels to a tile of another size, bit for bit as Pillow does it.
//!
//! The filters are those that Pillow has under the same names, widened when they
//! shrink, so that nothing aliases; pixel centres lie at halves. Rows first, then
//! columns, 8 bits in between, weights of 22 fractional bits: models trained on
//! Pillow's tiles see the same numbers.

use rayon::prelude::*;

use super::window::Window;
use crate::error::{Result, expect_len};
use crate::images::RGB;
use crate::simd::with_avx2;
use crate::{Error, Watch};

/// Fractional bits of a weight: 8 bits of pixel and 2 of overshoot fit beside.
const BITS: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (BITS - 1);

/// How pixels are weighted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Filter {
    /// The mean of the pixels covered.
    Box,
    /// A triangle.
    Bilinear,
    /// Keys' cubic convolution (1981), a = −0.5.
    #[default]
    Bicubic,
    /// A sinc in the window of its first three lobes.
    Lanczos,
}

impl Filter {
    /// How far it reaches, in pixels of the coarser side.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => cubic(x),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// One thread's resizer, with the weights and buffers it keeps.
#[derive(Default)]
pub(super) struct Resizer {
    across: Taps,
    down: Taps,
    middle: Vec<u8>,
    sums: Vec<i32>,
}

impl Resizer {
    /// Resizes the window's part of its rectangle into `out`.
    pub(super) fn resize(
        &mut self,
        window: &Window<'_>,
        filter: Filter,
        from: &[u8],
        out: &mut [u8],
    ) {
        let pixels = [window.width, window.height];
        self.fit(filter, (from, pixels), window.crop, (out, window.size));
    }

    /// Resizes a box (left, top, width, height) of some pixels to a whole tile;
    /// sizes are width and height.
    fn fit(
        &mut self,
        filter: Filter,
        (from, pixels): (&[u8], [usize; 2]),
        [left, top, span_x, span_y]: [f64; 4],
        (out, [width, height]): (&mut [u8], [usize; 2]),
    ) {
        self.across
            .prepare(filter, pixels[0], [left, span_x], width);
        self.down.prepare(filter, pixels[1], [top, span_y], height);
        self.middle.resize(pixels[1] * width * RGB, 0);
        self.sums.resize(width * RGB, 0);
        squeeze(from, pixels[0], &self.across, &mut self.middle);
        stack(&self.middle, &self.down, &mut self.sums, out);
    }
}

/// Resizes square tiles (n × side × side × 3) to `out` (n × size × size × 3).
pub fn resize(
    tiles: &[u8],
    [side, size]: [usize; 2],
    filter: Filter,
    out: &mut [u8],
    watch: &Watch,
) -> Result<()> {
    let positive = |what, side: usize| match side.checked_mul(side * RGB) {
        Some(bytes) if side > 0 => Ok(bytes),
        _ => Err(Error::Value {
            what,
            expected: "a positive side".into(),
            found: side.to_string(),
        }),
    };
    let (from, to) = (positive("tiles", side)?, positive("out", size)?);
    expect_len("tiles", tiles.len(), tiles.len() / from * from)?;
    expect_len("out", out.len(), tiles.len() / from * to)?;
    let whole = [0.0, 0.0, side as f64, side as f64];
    (tiles.par_chunks_exact(from))
        .zip(out.par_chunks_exact_mut(to))
        .try_for_each_init(Resizer::default, |resizer, (from, to)| {
            resizer.fit(filter, (from, [side; 2]), whole, (to, [size; 2]));
            watch.check()
        })
}

/// Which pixels make each output pixel along one axis, and with what weights.
#[derive(Default)]
struct Taps {
    key: (Filter, usize, u32, u32, usize),
    /// First pixel, and where its weights start and end, of each output pixel.
    runs: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    /// Weights for `size` output pixels over `span` of the `length` pixels there
    /// are, from `start` on; kept while the arguments stay the same.
    fn prepare(&mut self, filter: Filter, length: usize, [start, span]: [f64; 2], size: usize) {
        // Pillow takes its box in single precision.
        let (start, end) = (start as f32, (start + span) as f32);
        let key = (filter, length, start.to_bits(), end.to_bits(), size);
        if self.key == key && !self.runs.is_empty() {
            return;
        }
        self.key = key;
        self.runs.clear();
        self.weights.clear();
        let scale = f64::from(end - start) / size as f64;
        for i in 0..size {
            let center = f64::from(start) + (i as f64 + 0.5) * scale;
            self.push(filter, center, scale.max(1.0), length);
        }
    }

    fn push(&mut self, filter: Filter, center: f64, stretch: f64, length: usize) {
        let support = filter.support() * stretch;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(length);
        let weight = |i: usize| filter.weight((i as f64 - center + 0.5) / stretch);
        let total: f64 = (first..end).map(weight).sum();
        let begin = self.weights.len();
        self.weights.extend((first..end).map(|i| {
            let weight = weight(i) / total * f64::from(1 << BITS);
            (weight + 0.5_f64.copysign(weight)) as i32
        }));
        self.runs.push((first, begin..self.weights.len()));
    }
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

with_avx2! {
    fn squeeze(from: &[u8], width: usize, taps: &Taps, to: &mut [u8]) {
        let rows = to.chunks_exact_mut(taps.runs.len() * RGB);
        for (from, to) in from.chunks_exact(width * RGB).zip(rows) {
            for ((first, run), to) in taps.runs.iter().zip(to.chunks_exact_mut(RGB)) {
                let mut sums = [HALF; RGB];
                let pixels = from[first * RGB..].chunks_exact(RGB);
                for (weight, pixel) in taps.weights[run.clone()].iter().zip(pixels) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(value) * weight;
                    }
                }
                to.copy_from_slice(&sums.map(to_byte));
            }
        }
    }
}

with_avx2! {
    fn stack(from: &[u8], taps: &Taps, sums: &mut [i32], to: &mut [u8]) {
        let stride = sums.len();
        for ((first, run), to) in taps.runs.iter().zip(to.chunks_exact_mut(stride)) {
            sums.fill(HALF);
            let rows = from[first * stride..].chunks_exact(stride);
            for (weight, row) in taps.weights[run.clone()].iter().zip(rows) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (to, &sum) in to.iter_mut().zip(sums.iter()) {
                *to = to_byte(sum);
            }
        }
    }
}
