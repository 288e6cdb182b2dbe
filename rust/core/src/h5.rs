//! HDF5 datasets read past the HDF5 library.
//!
//! The library inflates and unshuffles one chunk at a time under one lock. Where the
//! chunks lie is a small table that h5py reads; given it, chunks are independent blocks
//! of bytes: each is read, inflated, and its values put together straight into the
//! caller's array. A stretch of the first axis can be read alone, so that a matrix
//! larger than memory passes through in pieces.

mod values;

use std::ops::Range;
use std::path::Path;

use libdeflater::Decompressor;
use rayon::prelude::*;

use crate::io::ReadAt;
use crate::{Error, Result, Watch};

use values::Values;
pub use values::{Bits, Kind, Number, Target};

/// What a header says of a dataset.
#[derive(Debug)]
pub struct Layout {
    /// Name within the file, for messages.
    pub name: String,
    /// Values along each axis.
    pub shape: Vec<usize>,
    /// Values along each axis of a chunk.
    pub chunk: Vec<usize>,
    /// How a value is stored.
    pub number: Number,
    /// Position of the shuffle filter in the pipeline, if it is there.
    pub shuffle: Option<u32>,
    /// Position of the deflate filter in the pipeline, if it is there.
    pub deflate: Option<u32>,
    /// Where each chunk's bytes start in the file.
    pub offsets: Vec<u64>,
    /// How many bytes each chunk has in the file.
    pub lengths: Vec<u64>,
    /// Filters that were left out for each chunk: bit n for the n-th of the pipeline.
    pub masks: Vec<u32>,
    /// Where each chunk's first value belongs: an index an axis, chunks in order.
    pub places: Vec<u64>,
}

/// A dataset whose chunks can be read.
#[derive(Debug)]
pub struct Dataset {
    layout: Layout,
    file: ReadAt,
}

/// A stretch of the first axis that one row of chunks covers, and its part of the output.
struct Band<'a, T> {
    row: usize,
    chunks: Range<usize>,
    out: &'a mut [T],
}

/// Buffers of one thread: a chunk as it lies in the file, and inflated.
struct Scratch {
    raw: Vec<u8>,
    plain: Vec<u8>,
    inflater: Decompressor,
}

impl Dataset {
    /// Opens the file and holds the table of chunks against the shape.
    pub fn open(path: &Path, layout: Layout) -> Result<Self> {
        let file = ReadAt::open(path)?;
        let dataset = Self { layout, file };
        match dataset.layout.fault() {
            None => Ok(dataset),
            Some(found) => Err(dataset.bad("chunks", "a table that fits the shape", found)),
        }
    }

    /// Values along the first axis.
    pub fn len(&self) -> usize {
        self.layout.shape[0]
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.layout.shape.contains(&0)
    }

    /// How a value is stored.
    pub fn number(&self) -> Number {
        self.layout.number
    }

    /// An error that names the dataset and its file.
    pub fn bad(&self, what: &str, expected: &str, found: impl Into<String>) -> Error {
        Error::Format {
            path: self.file.path().to_owned(),
            what: format!("{what} of {}", self.layout.name),
            expected: expected.to_owned(),
            found: found.into(),
        }
    }

    /// Fills `out` with the values from `start` on along the first axis.
    ///
    /// What no chunk covers stays as it was: the caller put the fill value there. With
    /// `below`, integers must be neither negative nor larger than that allows.
    pub fn read<T: Bits>(
        &self,
        start: usize,
        target: (Target, Option<u64>),
        out: &mut [T],
        watch: &Watch,
    ) -> Result<()> {
        let stride = self.layout.stride();
        let rows = out.len().checked_div(stride).unwrap_or(0);
        let end = start.checked_add(rows);
        if rows * stride != out.len() || end.is_none_or(|end| end > self.len()) {
            return Err(Error::Shape {
                what: "values read of a dataset",
                expected: self.len().saturating_sub(start) * stride,
                found: out.len(),
            });
        }
        let bands = self.bands(start, stride, out);
        (bands.into_par_iter()).try_for_each_init(Scratch::new, |scratch, band| {
            watch.check()?;
            self.read_band(target, band, scratch)
        })
    }

    /// Cuts `out` where rows of chunks end: bands share no value.
    fn bands<'a, T>(&self, start: usize, stride: usize, out: &'a mut [T]) -> Vec<Band<'a, T>> {
        let step = self.layout.chunk[0];
        let mut bands = Vec::new();
        let (mut row, mut left) = (start, out);
        while !left.is_empty() {
            let rows = (step - row % step).min(left.len() / stride);
            let (out, rest) = left.split_at_mut(rows * stride);
            let chunks = self.layout.chunks_at(row / step * step);
            bands.push(Band { row, chunks, out });
            (row, left) = (row + rows, rest);
        }
        bands
    }

    fn read_band<T: Bits>(
        &self,
        target: (Target, Option<u64>),
        band: Band<'_, T>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Band { row, chunks, out } = band;
        let (stride, width) = (self.layout.stride(), self.layout.width());
        for chunk in chunks {
            let bytes = self.decode(chunk, scratch)?;
            let shuffled = self.layout.is_on(self.layout.shuffle, chunk);
            let values = Values::new(bytes, self.layout.number, shuffled);
            for (at, to, n) in self.layout.runs(chunk, row, out.len() / stride) {
                let out = &mut out[to * width..(to + n) * width];
                let Some(()) = values.copy_below(at, target, out) else {
                    let (what, dtype) = ("value of a dataset", target.0.dtype::<T>());
                    return Err(Error::Overflow { what, dtype });
                };
            }
        }
        Ok(())
    }

    /// A chunk's bytes as they were before deflate.
    fn decode<'a>(&self, chunk: usize, scratch: &'a mut Scratch) -> Result<&'a [u8]> {
        let layout = &self.layout;
        let (offset, length) = (layout.offsets[chunk], layout.lengths[chunk]);
        let what = || format!("chunk {chunk} of {}", layout.name);
        self.file.read(&what(), offset, length, &mut scratch.raw)?;
        let size = layout.chunk_bytes();
        if !layout.is_on(layout.deflate, chunk) {
            let least = match layout.is_on(layout.shuffle, chunk) {
                true => size,
                false => layout.bytes_within(chunk),
            };
            if scratch.raw.len() < least {
                let found = format!("{} bytes", scratch.raw.len());
                return Err(self.bad(&format!("chunk {chunk}"), &format!("{least} bytes"), found));
            }
            return Ok(&scratch.raw[..least]);
        }
        scratch.plain.resize(size, 0);
        let inflated = (scratch.inflater).zlib_decompress(&scratch.raw, &mut scratch.plain);
        match inflated {
            Ok(n) if n == size => Ok(&scratch.plain[..]),
            Ok(n) => Err(format!("{n} bytes")),
            Err(error) => Err(error.to_string()),
        }
        .map_err(|found| {
            let expected = format!("{size} deflated bytes");
            self.bad(&format!("chunk {chunk}"), &expected, found)
        })
    }
}

impl Scratch {
    fn new() -> Self {
        Self {
            raw: Vec::new(),
            plain: Vec::new(),
            inflater: Decompressor::new(),
        }
    }
}

impl Layout {
    /// What is wrong with the table, if anything.
    fn fault(&self) -> Option<String> {
        let (n, rank) = (self.offsets.len(), self.shape.len());
        let sizes = self.chunk.iter().chain([&self.number.size]);
        let bytes = sizes.copied().try_fold(1usize, usize::checked_mul);
        // HDF5 allows no larger chunk.
        let sane = bytes.is_some_and(|bytes| (1..=u32::MAX as usize).contains(&bytes));
        if rank == 0 || self.chunk.len() != rank || !sane {
            return Some(format!("chunks of {:?} for {:?}", self.chunk, self.shape));
        }
        if (self.lengths.len(), self.masks.len(), self.places.len()) != (n, n, n * rank) {
            return Some(format!("columns of unequal length for {n} chunks"));
        }
        let places = || self.places.chunks(rank);
        let lost = |place: &[u64]| {
            let axes = place.iter().zip(&self.chunk).zip(&self.shape);
            axes.into_iter()
                .any(|((&at, &step), &end)| at % step as u64 != 0 || at >= end as u64)
        };
        let pairs = places().zip(places().skip(1));
        (places().find(|place| lost(place)))
            .or_else(|| pairs.into_iter().find(|(a, b)| a >= b).map(|(_, b)| b))
            .map(|place| format!("a chunk at {place:?}"))
    }

    fn chunk_bytes(&self) -> usize {
        self.chunk.iter().product::<usize>() * self.number.size
    }

    /// Bytes of a chunk up to the end of the first axis: an unfiltered one may end there.
    fn bytes_within(&self, chunk: usize) -> usize {
        let rows = self.shape[0] - self.place(chunk)[0];
        self.chunk_bytes() / self.chunk[0] * rows.min(self.chunk[0])
    }

    /// Elements of an output array for one value: a text has one a byte.
    fn width(&self) -> usize {
        match self.number.kind {
            Kind::Text => self.number.size,
            _ => 1,
        }
    }

    /// Elements of an output array for one step along the first axis.
    fn stride(&self) -> usize {
        self.shape[1..].iter().product::<usize>() * self.width()
    }

    fn place(&self, chunk: usize) -> Vec<usize> {
        let rank = self.shape.len();
        let place = &self.places[chunk * rank..][..rank];
        place.iter().map(|&at| at as usize).collect()
    }

    /// The chunks that start at a row: they are sorted.
    fn chunks_at(&self, row: usize) -> Range<usize> {
        let rank = self.shape.len();
        let before = |row: usize| {
            let (mut low, mut high) = (0, self.offsets.len());
            while low < high {
                let middle = low.midpoint(high);
                match self.places[middle * rank] < row as u64 {
                    true => low = middle + 1,
                    false => high = middle,
                }
            }
            low
        };
        before(row)..before(row + 1)
    }

    /// Whether a filter of the pipeline was applied to a chunk.
    fn is_on(&self, filter: Option<u32>, chunk: usize) -> bool {
        filter.is_some_and(|bit| self.masks[chunk] & (1 << bit) == 0)
    }

    /// Runs of neighbours that a chunk has in the rows `row..row + rows`: where each starts
    /// in the chunk and in the output of those rows, and how many values it has.
    fn runs(
        &self,
        chunk: usize,
        row: usize,
        rows: usize,
    ) -> impl Iterator<Item = (usize, usize, usize)> {
        let place = self.place(chunk);
        let last = place.len() - 1;
        let mut extent: Vec<_> = (0..=last)
            .map(|axis| self.chunk[axis].min(self.shape[axis] - place[axis]))
            .collect();
        extent[0] = rows;
        // Where the rows start in the chunk; in the output they start at zero.
        let mut skip = vec![0; place.len()];
        skip[0] = row - place[0];
        let outer: usize = extent[..last].iter().product();
        (0..outer).map(move |run| {
            let first = |axis: usize| if axis == 0 { 0 } else { place[axis] };
            let (mut at, mut to, mut rest) = (skip[last], first(last), run);
            let (mut inner, mut beside) = (self.chunk[last], self.shape[last]);
            for axis in (0..last).rev() {
                let index = rest % extent[axis];
                rest /= extent[axis];
                at += (skip[axis] + index) * inner;
                to += (first(axis) + index) * beside;
                inner *= self.chunk[axis];
                beside *= self.shape[axis];
            }
            (at, to, extent[last])
        })
    }
}
