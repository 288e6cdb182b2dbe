//! JPEG through libjpeg-turbo.
//!
//! The build requires its SIMD code, chosen at run time. Accurate DCT and fancy
//! upsampling, its defaults, make the pixels equal to those of libtiff, tifffile
//! and Pillow.
//!
//! A TIFF block may lack its tables, and may lack any word on its colours: then
//! libjpeg takes three components for `YCbCr`, while Aperio stores RGB so. The
//! tables are read first, as a stream of their own, and the colours are set.
//!
//! What talks to libjpeg is `jpeg.c`; here its state is given an owner.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{NonNull, null_mut};

use super::Colour;
use super::codec::{Fault, Got, Shape, grow};
use crate::io::Section;

/// What a stream's header says; the fields of `jpeg.c`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Info {
    pub(super) width: u32,
    pub(super) height: u32,
    components: u32,
    pub(super) samples: u32,
    pub(super) mcu_width: u32,
    pub(super) mcu_height: u32,
    /// Whether a row of MCUs needs no other to be upsampled.
    pub(super) rows_apart: u32,
    /// MCUs from one restart marker to the next; 0 without markers.
    pub(super) restart_interval: u32,
    /// One baseline scan that holds all components.
    pub(super) sequential: u32,
    inverted: u32,
}

#[repr(C)]
struct State {
    opaque: [u8; 0],
}

/// Reads at most so many bytes; 0 at the end, negative on an error.
type Read = unsafe extern "C" fn(*mut c_void, *mut u8, usize) -> i64;

// SAFETY: in all calls the state is alive, and used by one thread at a time.
unsafe extern "C" {
    fn stfast_jpeg_new() -> *mut State;
    fn stfast_jpeg_free(state: *mut State);
    fn stfast_jpeg_message(state: *const State) -> *const c_char;
    fn stfast_jpeg_header(
        state: *mut State,
        tables: *const u8,
        n_tables: usize,
        bytes: *const u8,
        n: usize,
        read: Option<Read>,
        user: *mut c_void,
        space: c_int,
        info: *mut Info,
    ) -> c_int;
    fn stfast_jpeg_left(state: *const State) -> usize;
    fn stfast_jpeg_start(state: *mut State) -> c_int;
    fn stfast_jpeg_crop(state: *mut State, x: *mut u32, width: *mut u32) -> c_int;
    fn stfast_jpeg_rows(state: *mut State, to: *mut u8, stride: usize, rows: u32) -> c_int;
    fn stfast_jpeg_skip(state: *mut State, rows: u32) -> c_int;
    fn stfast_jpeg_finish(state: *mut State) -> c_int;
}

/// A decompressor of one stream, whose bytes live for `'a`.
pub(super) struct Jpeg<'a> {
    state: NonNull<State>,
    /// Handed to C: where it lies, not what holds it, is what counts.
    section: Option<NonNull<Section>>,
    pub(super) info: Info,
    /// Pixels of a row that comes out.
    row: usize,
    bytes: PhantomData<&'a [u8]>,
}

// SAFETY: the state holds no reference to the thread that made it, and `&mut
// self` keeps two threads from using it at once.
unsafe impl Send for Jpeg<'_> {}

impl Drop for Jpeg<'_> {
    fn drop(&mut self) {
        // SAFETY: the state came from stfast_jpeg_new and is not used again.
        unsafe { stfast_jpeg_free(self.state.as_ptr()) }
        if let Some(section) = self.section {
            // SAFETY: it came from Box::leak, and the state that read it is gone.
            drop(unsafe { Box::from_raw(section.as_ptr()) });
        }
    }
}

impl<'a> Jpeg<'a> {
    /// Reads the header of a stream in memory.
    pub(super) fn of(tables: &[u8], stream: &'a [u8], colour: Colour) -> Result<Self, Fault> {
        let mut jpeg = Self::new()?;
        jpeg.read_header(tables, stream, colour)?;
        Ok(jpeg)
    }

    /// Reads the header of a stream that is read from a file as it is needed.
    pub(super) fn from(tables: &[u8], section: Section, colour: Colour) -> Result<Self, Fault> {
        let mut jpeg = Self::new()?;
        jpeg.section = Some(NonNull::from(Box::leak(Box::new(section))));
        jpeg.read_header(tables, &[], colour)?;
        Ok(jpeg)
    }

    fn new() -> Result<Self, Fault> {
        // SAFETY: no preconditions.
        let state = NonNull::new(unsafe { stfast_jpeg_new() });
        let state = state.ok_or_else(|| Fault::new("memory for a JPEG decoder", "none"))?;
        Ok(Self {
            state,
            section: None,
            info: Info::default(),
            row: 0,
            bytes: PhantomData,
        })
    }

    fn read_header(
        &mut self,
        tables: &[u8],
        stream: &'a [u8],
        colour: Colour,
    ) -> Result<(), Fault> {
        let space = match colour {
            Colour::Rgb => 1,
            Colour::YCbCr { .. } => 2,
            _ => 0,
        };
        let (read, user): (Option<Read>, _) = match self.section {
            Some(section) => (Some(read_section), section.as_ptr().cast()),
            None => (None, null_mut()),
        };
        let tables = if tables.len() > 4 { tables } else { &[] };
        let (state, n_tables, n) = (self.state.as_ptr(), tables.len(), stream.len());
        let (tables, bytes, info) = (tables.as_ptr(), stream.as_ptr(), &raw mut self.info);
        // SAFETY: the tables are read within the call; the stream's bytes live for
        // 'a and the section as long as the state, which are all that use them.
        let rc = unsafe {
            stfast_jpeg_header(state, tables, n_tables, bytes, n, read, user, space, info)
        };
        self.check(rc)?;
        self.row = self.info.width as usize;
        if matches!(self.info.samples, 1 | 3 | 4) {
            return Ok(());
        }
        let found = format!("{} components", self.info.samples);
        Err(Fault::unsupported("a JPEG of 1, 3 or 4 components", found))
    }

    /// Where in the file the first byte after the header is; 0 of a stream in memory.
    pub(super) fn position(&self) -> u64 {
        let Some(section) = self.section else {
            return 0;
        };
        // SAFETY: it lives as long as the state, which is not reading now.
        let position = unsafe { section.as_ref() }.position();
        // SAFETY: reads a number from a live state.
        let left = unsafe { stfast_jpeg_left(self.state.as_ptr()) };
        position - left as u64
    }

    /// What the samples that come out are.
    pub(super) fn got(&self, colour: Colour) -> Got {
        let inverted = self.info.inverted != 0;
        let samples = self.info.samples as usize;
        let colour = match (samples, colour) {
            (1, Colour::GreyInverted) => Colour::GreyInverted,
            (1, _) => Colour::Grey,
            (4, Colour::Cmyk { .. } | Colour::Stream) => Colour::Cmyk { inverted },
            _ => Colour::Rgb,
        };
        Got {
            width: self.row,
            samples,
            colour,
        }
    }

    /// Starts to decode: reads all of a progressive stream.
    pub(super) fn start(&mut self) -> Result<(), Fault> {
        // SAFETY: the state is alive and its header has been read.
        let rc = unsafe { stfast_jpeg_start(self.state.as_ptr()) };
        self.check(rc)
    }

    /// Leaves out columns beside `wanted`; those that come out instead.
    ///
    /// Upsampling looks at the column beside: a margin of an MCU keeps those wanted as
    /// they are in the whole picture, bit for bit.
    pub(super) fn crop(&mut self, wanted: Range<usize>) -> Result<Range<usize>, Fault> {
        let mcu = self.info.mcu_width;
        let end = (wanted.end as u32).saturating_add(mcu).min(self.info.width);
        let mut x = (wanted.start as u32).saturating_sub(mcu);
        let mut width = end - x;
        // SAFETY: the state is alive and no row has been read; both numbers are ours.
        let rc = unsafe { stfast_jpeg_crop(self.state.as_ptr(), &raw mut x, &raw mut width) };
        self.check(rc)?;
        self.row = width as usize;
        Ok(x as usize..(x + width) as usize)
    }

    /// Decodes as many rows as fit in `out`.
    pub(super) fn rows(&mut self, out: &mut [u8]) -> Result<(), Fault> {
        let stride = self.row * self.info.samples as usize;
        let rows = (out.len() / stride) as u32;
        // SAFETY: `out` holds `rows` rows of `stride` bytes, and libjpeg writes `row`
        // pixels of `samples` bytes a row.
        let rc = unsafe { stfast_jpeg_rows(self.state.as_ptr(), out.as_mut_ptr(), stride, rows) };
        self.check(rc)
    }

    /// Passes over rows.
    pub(super) fn skip(&mut self, rows: usize) -> Result<(), Fault> {
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: the state is alive and decoding.
        let rc = unsafe { stfast_jpeg_skip(self.state.as_ptr(), rows as u32) };
        self.check(rc)
    }

    /// Reads to the end, where it turns out whether anything was missing.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        // SAFETY: the state is alive and all rows have been read.
        let rc = unsafe { stfast_jpeg_finish(self.state.as_ptr()) };
        self.check(rc)
    }

    fn check(&self, rc: c_int) -> Result<(), Fault> {
        if rc == 0 {
            return Ok(());
        }
        // SAFETY: the message is a C string within the state.
        let message = unsafe { CStr::from_ptr(stfast_jpeg_message(self.state.as_ptr())) };
        Err(Fault::new("a JPEG stream", message.to_string_lossy()))
    }
}

/// Hands libjpeg the next bytes of a section.
unsafe extern "C" fn read_section(user: *mut c_void, to: *mut u8, n: usize) -> i64 {
    // SAFETY: `user` is the section that the header was read from, and libjpeg
    // calls back only while the decompressor is borrowed.
    let section = unsafe { &mut *user.cast::<Section>() };
    // SAFETY: `to` is a buffer of `n` bytes.
    let to = unsafe { std::slice::from_raw_parts_mut(to, n) };
    match std::io::Read::read(section, to) {
        Ok(n) => n as i64,
        Err(_) => -1,
    }
}

/// Decodes a stream to rows of pixels: all of them, or the part of `wanted`, which
/// becomes the columns and rows that came out.
pub(super) fn decode(
    stream: &[u8],
    tables: &[u8],
    colour: Colour,
    shape: Shape,
    wanted: Option<&mut [Range<usize>; 2]>,
    out: &mut Vec<u8>,
) -> Result<Got, Fault> {
    let mut jpeg = Jpeg::of(tables, stream, colour)?;
    let (width, height) = (jpeg.info.width as usize, jpeg.info.height as usize);
    shape.expect("a JPEG", width, height)?;
    jpeg.start()?;
    let mut rows = 0..height;
    if let Some([columns, wanted]) = wanted {
        *columns = jpeg.crop(columns.clone())?;
        jpeg.skip(wanted.start)?;
        rows = wanted.clone();
    }
    grow(out, jpeg.row * jpeg.info.samples as usize * rows.len())?;
    jpeg.rows(out)?;
    if rows.end == height {
        jpeg.finish()?;
    }
    Ok(jpeg.got(colour))
}
