//! JPEG through libjpeg-turbo.
//!
//! The build requires its SIMD code, chosen at run time. Accurate DCT and fancy
//! upsampling, its defaults, make the pixels equal to those of libtiff, tifffile
//! and Pillow.
//!
//! A TIFF block may lack its tables, and may lack any word on its colours: then
//! libjpeg takes three components for `YCbCr`, while Aperio stores RGB so. Both
//! are mended by splicing what is missing behind the stream's first marker.

use std::ffi::{CStr, c_int};

use turbojpeg_sys as tj;

use super::codec::{Fault, Shape};
use super::{Colour, RGB};

/// A decompressor of libjpeg-turbo with the buffer streams are spliced in.
pub(super) struct Jpeg {
    handle: tj::tjhandle,
    spliced: Vec<u8>,
}

// SAFETY: a TurboJPEG handle holds no reference to the thread that made it; it
// only must not be used by two threads at once, which `&mut self` rules out.
unsafe impl Send for Jpeg {}

impl Drop for Jpeg {
    fn drop(&mut self) {
        // SAFETY: the handle came from tj3Init and is not used again.
        unsafe { tj::tj3Destroy(self.handle) }
    }
}

impl Jpeg {
    pub(super) fn new() -> Self {
        // SAFETY: no preconditions; a null handle makes every later call fail.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let spliced = Vec::new();
        Self { handle, spliced }
    }

    /// Decodes a stream to RGB rows of `shape.width` pixels.
    pub(super) fn decode(
        &mut self,
        stream: &[u8],
        tables: &[u8],
        colour: Colour,
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let mut spliced = std::mem::take(&mut self.spliced);
        let whole = splice(stream, tables, colour, &mut spliced);
        let result = self.decode_whole(whole, shape, out);
        self.spliced = spliced;
        result
    }

    fn decode_whole(
        &mut self,
        stream: &[u8],
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        // SAFETY: the pointer and the length are those of one slice.
        let rc =
            unsafe { tj::tj3DecompressHeader(self.handle, stream.as_ptr(), stream.len() as _) };
        self.check(rc)?;
        let width = self.parameter(tj::TJPARAM_TJPARAM_JPEGWIDTH);
        let height = self.parameter(tj::TJPARAM_TJPARAM_JPEGHEIGHT);
        if width != shape.width || !(shape.height..=shape.most).contains(&height) {
            let expected = format!("a JPEG of {} × {} pixels", shape.width, shape.height);
            return Err(Fault::new(expected, format!("{width} × {height}")));
        }
        let colours = self.parameter(tj::TJPARAM_TJPARAM_COLORSPACE) as tj::TJCS;
        if matches!(colours, tj::TJCS_TJCS_CMYK | tj::TJCS_TJCS_YCCK) {
            let mut fault = Fault::new("a JPEG of RGB, YCbCr or grey", "CMYK");
            fault.unsupported = true;
            return Err(fault);
        }
        out.resize(width * height * RGB, 0);
        // SAFETY: `out` holds the height × width × 3 bytes that the header just
        // promised; a pitch of 0 means rows without padding.
        let rc = unsafe {
            let (from, len, to) = (stream.as_ptr(), stream.len() as _, out.as_mut_ptr());
            tj::tj3Decompress8(self.handle, from, len, to, 0, tj::TJPF_TJPF_RGB as c_int)
        };
        self.check(rc)
    }

    fn parameter(&self, parameter: tj::TJPARAM) -> usize {
        // SAFETY: reads a number from a live handle; −1 if it has none.
        let value = unsafe { tj::tj3Get(self.handle, parameter as c_int) };
        value.max(0) as usize
    }

    /// Warnings are errors too (they tell of missing or bad data), save for a few
    /// stray bytes before the end marker, which some scanners leave: all pixels are
    /// there by then. libjpeg keeps its first warning only, so any other may hide
    /// more, and many bytes are a piece of the picture in the wrong place.
    fn check(&self, rc: c_int) -> Result<(), Fault> {
        if rc == 0 {
            return Ok(());
        }
        // SAFETY: the message is a C string that lives until the next call.
        let message = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.handle)) };
        let message = message.to_string_lossy();
        // SAFETY: reads a number from a live handle.
        let code = unsafe { tj::tj3GetErrorCode(self.handle) };
        let warning = code == tj::TJERR_TJERR_WARNING as c_int;
        if warning && stray_before_end(&message).is_some_and(|stray| stray <= STRAY) {
            return Ok(());
        }
        Err(Fault::new("a JPEG stream", message))
    }
}

/// Stray bytes at its end that a stream may have.
const STRAY: usize = 16;

/// How many bytes too many libjpeg found before the end marker, if that is its warning.
fn stray_before_end(message: &str) -> Option<usize> {
    let (before, after) = message.split_once(" extraneous bytes before marker ")?;
    let count = before.rsplit(' ').next()?.parse().ok()?;
    after.starts_with("0xd9").then_some(count)
}

/// The stream with the tables and the word on colours that it lacks.
fn splice<'a>(
    stream: &'a [u8],
    tables: &[u8],
    colour: Colour,
    spliced: &'a mut Vec<u8>,
) -> &'a [u8] {
    let mute = !says_colours(stream) && !says_colours(tables);
    let transform = match colour {
        Colour::Rgb if mute => Some(0),
        Colour::YCbCr if mute => Some(1),
        _ => None,
    };
    // Tables end with an end-of-image marker of their own.
    let tables = tables.get(2..tables.len().max(4) - 2).unwrap_or(&[]);
    if (transform.is_none() && tables.is_empty()) || stream.len() < 2 {
        return stream;
    }
    spliced.clear();
    spliced.extend_from_slice(&stream[..2]);
    if let Some(transform) = transform {
        spliced.extend_from_slice(b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00");
        spliced.push(transform);
    }
    spliced.extend_from_slice(tables);
    spliced.extend_from_slice(&stream[2..]);
    spliced
}

/// Whether a JFIF or an Adobe segment stands before the frame header.
fn says_colours(stream: &[u8]) -> bool {
    let mut rest = stream.get(2..).unwrap_or(&[]);
    while let [0xff, marker, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        match marker {
            0xff => {
                rest = &rest[1..];
                continue;
            }
            0xe0 if body.starts_with(b"JFIF") => return true,
            0xee if body.starts_with(b"Adobe") => return true,
            0xc0..=0xc2 | 0xda | 0xd9 => return false,
            _ => {}
        }
        rest = body.get(length.saturating_sub(2)..).unwrap_or(&[]);
    }
    false
}
