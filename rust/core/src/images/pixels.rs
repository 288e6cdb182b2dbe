//! From samples as stored to 8-bit RGB in place.

use super::codec::{Got, Shape};
use super::{Layout, RGB};

/// What a level's samples mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// 0 is black.
    Grey,
    /// 0 is white.
    GreyInverted,
    /// Red, green, blue; a fourth sample (alpha) is dropped.
    Rgb,
    /// An index into the layout's palette.
    Palette,
    /// Cyan, magenta, yellow, black.
    Cmyk {
        /// Whether 255 is no ink, as Adobe writes it.
        inverted: bool,
    },
    /// Luma and chroma of full range (ITU-R BT.601), chroma of so many pixels.
    YCbCr {
        /// Columns that share a pair of chroma samples.
        across: u8,
        /// Rows that share one.
        down: u8,
    },
    /// What the coded stream says: a file that is one picture.
    Stream,
}

/// Which stored sample becomes red, green and blue; [`NONE`]: black.
pub type Pick = [u8; RGB];

/// No sample.
pub const NONE: u8 = u8::MAX;

/// Turns the bytes of samples into interleaved 8-bit samples: differences
/// summed, deeper samples cut to their upper 8 bits, shared chroma repeated.
pub(super) fn settle(layout: &Layout, shape: Shape, samples: &mut Vec<u8>) -> Got {
    let row = shape.width * shape.samples;
    if layout.differenced && layout.bits == 8 {
        undo_differences(samples, row, shape.samples);
    }
    if layout.bits == 16 {
        narrow(samples, row, layout);
    }
    if let Colour::YCbCr { across, down } = layout.colour
        && (across, down) != (1, 1)
    {
        *samples = repeat_chroma(samples, shape, across.into(), down.into());
    }
    Got {
        width: shape.width,
        samples: shape.samples,
        colour: layout.colour,
    }
}

/// Adds to each sample the one a pixel to its left (TIFF 6.0, section 14).
fn undo_differences(samples: &mut [u8], row: usize, step: usize) {
    for row in samples.chunks_exact_mut(row) {
        for i in step..row.len() {
            row[i] = row[i].wrapping_add(row[i - step]);
        }
    }
}

/// 16-bit samples to their upper bytes.
fn narrow(samples: &mut Vec<u8>, row: usize, layout: &Layout) {
    let read = if layout.big_endian {
        u16::from_be_bytes
    } else {
        u16::from_le_bytes
    };
    let step = if layout.planar { 1 } else { layout.samples };
    let n = samples.len() / 2;
    let mut left = vec![0_u16; step];
    for i in 0..n {
        let mut value = read([samples[2 * i], samples[2 * i + 1]]);
        if layout.differenced {
            if i % row < step {
                left[i % step] = 0;
            }
            value = value.wrapping_add(left[i % step]);
            left[i % step] = value;
        }
        samples[i] = (value >> 8) as u8;
    }
    samples.truncate(n);
}

/// Data units of TIFF 6.0, section 21 (luma of a few pixels, then Cb and Cr), to
/// three samples a pixel.
fn repeat_chroma(units: &[u8], shape: Shape, across: usize, down: usize) -> Vec<u8> {
    let unit = across * down + 2;
    let per_row = shape.width.div_ceil(across);
    let rows = units.len() / (per_row * unit) * down;
    let mut out = vec![0; rows * shape.width * RGB];
    for (y, row) in out.chunks_exact_mut(shape.width * RGB).enumerate() {
        let units = &units[y / down * per_row * unit..];
        for (x, pixel) in row.chunks_exact_mut(RGB).enumerate() {
            let unit = &units[x / across * unit..][..unit];
            let luma = unit[y % down * across + x % across];
            pixel.copy_from_slice(&[luma, unit[unit.len() - 2], unit[unit.len() - 1]]);
        }
    }
    out
}

/// Where a stored block's samples go in the block's RGB rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement<'a> {
    /// Pixels of a row inside the level.
    pub(super) width: usize,
    pub(super) got: Got,
    /// Which samples are shown; `None`: what they mean.
    pub(super) pick: Option<Pick>,
    pub(super) palette: &'a [u8],
    /// The plane that the samples are of, where each sample has its own.
    pub(super) plane: Option<usize>,
    /// Which plane becomes red, green and blue.
    pub(super) planes: Pick,
}

impl Placement<'_> {
    /// Whether the samples are what is wanted, and need not be moved.
    pub(super) fn is_identity(&self) -> bool {
        self.plane.is_none() && self.width == self.got.width && self.is_rgb()
    }

    fn is_rgb(&self) -> bool {
        self.got.samples == RGB && self.got.colour == Colour::Rgb && self.pick.is_none()
    }

    /// Copies the rows that fall inside the level.
    pub(super) fn place(&self, stored: &[u8], out: &mut [u8]) {
        let rows = stored.chunks_exact(self.got.width * self.got.samples);
        for (out, row) in out.chunks_exact_mut(self.width * RGB).zip(rows) {
            if let Some(plane) = self.plane {
                self.place_plane(plane, row, out);
            } else if self.is_rgb() {
                out.copy_from_slice(&row[..out.len()]);
            } else {
                self.place_row(row, out);
            }
        }
    }

    fn place_row(&self, row: &[u8], out: &mut [u8]) {
        let pixels = (out.chunks_exact_mut(RGB)).zip(row.chunks_exact(self.got.samples));
        if let Some(pick) = self.pick {
            return pixels.for_each(|(rgb, s)| {
                let sample = |&at: &u8| s.get(usize::from(at)).copied().unwrap_or(0);
                (rgb.iter_mut().zip(&pick)).for_each(|(to, at)| *to = sample(at));
            });
        }
        match self.got.colour {
            Colour::GreyInverted => pixels.for_each(|(rgb, s)| rgb.fill(!s[0])),
            Colour::Palette => pixels.for_each(|(rgb, s)| {
                let at = usize::from(s[0]) * RGB;
                rgb.copy_from_slice(&self.palette[at..at + RGB]);
            }),
            Colour::Cmyk { inverted } if self.got.samples > RGB => {
                pixels.for_each(|(rgb, s)| from_cmyk(s, inverted, rgb));
            }
            Colour::YCbCr { .. } if self.got.samples >= RGB => {
                pixels.for_each(|(rgb, s)| from_ycbcr([s[0], s[1], s[2]], rgb));
            }
            Colour::Rgb if self.got.samples >= RGB => {
                pixels.for_each(|(rgb, s)| rgb.copy_from_slice(&s[..RGB]));
            }
            _ => pixels.for_each(|(rgb, s)| rgb.fill(s[0])),
        }
    }

    /// A plane serves each colour that picks it.
    fn place_plane(&self, plane: usize, row: &[u8], out: &mut [u8]) {
        let flip = match (self.got.colour, self.pick) {
            (Colour::GreyInverted, None) => u8::MAX,
            _ => 0,
        };
        let samples = row.chunks_exact(self.got.samples).map(|pixel| pixel[0]);
        for (rgb, sample) in out.chunks_exact_mut(RGB).zip(samples) {
            for (to, &at) in rgb.iter_mut().zip(&self.planes) {
                if usize::from(at) == plane {
                    *to = sample ^ flip;
                }
            }
        }
    }
}

/// As Pillow does it: each ink takes its share of what black leaves.
fn from_cmyk(inks: &[u8], inverted: bool, rgb: &mut [u8]) {
    let flip = if inverted { u8::MAX } else { 0 };
    let paper = u32::from(!(inks[3] ^ flip));
    for (to, ink) in rgb.iter_mut().zip(inks) {
        let product = u32::from(ink ^ flip) * paper + 128;
        let taken = ((product >> 8) + product) >> 8;
        *to = (paper - taken.min(paper)) as u8;
    }
}

/// Luma and chroma planes that already lie interleaved, to RGB.
pub(super) fn convert_ycbcr(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(RGB) {
        from_ycbcr([pixel[0], pixel[1], pixel[2]], pixel);
    }
}

/// JFIF's equations, in 16 fractional bits, rounded.
fn from_ycbcr([y, cb, cr]: [u8; 3], rgb: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    let fix = |factor: f64| (factor * 65536.0 + 0.5) as i32;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((fix(1.402) * cr + HALF) >> 16);
    let green = y + ((-fix(0.344_136_286) * cb - fix(0.714_136_286) * cr + HALF) >> 16);
    let blue = y + ((fix(1.772) * cb + HALF) >> 16);
    for (to, value) in rgb.iter_mut().zip([red, green, blue]) {
        *to = value.clamp(0, 255) as u8;
    }
}
