//! A tile's pixels to the bytes of a file.

use std::ffi::{CStr, c_int};
use std::path::Path;

use turbojpeg_sys as tj;

use crate::Error;
use crate::error::Result;
use crate::images::RGB;

/// How tiles are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Pixels, rows from the top.
    Raw,
    /// Pixels behind numpy's header.
    Npy,
    /// PNG, compressed for speed.
    Png,
    /// JPEG without chroma subsampling.
    Jpeg {
        /// 1 to 100.
        quality: u8,
    },
    /// Pixels in a Zstandard frame.
    Zstd {
        /// 1 to 22.
        level: u8,
    },
}

impl Encoding {
    /// The ending of a file's name.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Npy => "npy",
            Self::Png => "png",
            Self::Jpeg { .. } => "jpg",
            Self::Zstd { .. } => "zst",
        }
    }
}

/// The states of one thread's encoders, made when first needed.
#[derive(Default)]
pub(super) struct Encoder {
    jpeg: Option<Jpeg>,
    zstd: Option<(u8, zstd::bulk::Compressor<'static>)>,
}

impl Encoder {
    /// The bytes of a tile of `size` (width, height) pixels.
    pub(super) fn encode(
        &mut self,
        encoding: Encoding,
        size: [usize; 2],
        pixels: &[u8],
        path: &Path,
    ) -> Result<Vec<u8>> {
        let fault = |e: std::io::Error| Error::io(path, e);
        match encoding {
            Encoding::Raw => Ok(pixels.to_vec()),
            Encoding::Npy => Ok([npy_header(size).as_slice(), pixels].concat()),
            Encoding::Png => png(size, pixels).map_err(|e| fault(e.into())),
            Encoding::Jpeg { quality } => {
                let jpeg = self.jpeg.get_or_insert_with(Jpeg::new);
                (jpeg.encode(size, pixels, quality)).map_err(|e| fault(std::io::Error::other(e)))
            }
            Encoding::Zstd { level } => self.zstd(level, pixels).map_err(fault),
        }
    }

    fn zstd(&mut self, level: u8, pixels: &[u8]) -> std::io::Result<Vec<u8>> {
        if self.zstd.as_ref().is_none_or(|(held, _)| *held != level) {
            let state = zstd::bulk::Compressor::new(i32::from(level))?;
            self.zstd = Some((level, state));
        }
        match &mut self.zstd {
            Some((_, state)) => state.compress(pixels),
            None => Ok(Vec::new()),
        }
    }
}

/// Version 1.0 of the format: the header ends at a multiple of 64 bytes.
fn npy_header([width, height]: [usize; 2]) -> Vec<u8> {
    let shape = format!("({height}, {width}, {RGB})");
    let text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}");
    let length = (text.len() + 11).next_multiple_of(64) - 10;
    let padded = format!("{text:<width$}\n", width = length - 1);
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((length as u16).to_le_bytes());
    header.extend(padded.as_bytes());
    header
}

fn png(
    [width, height]: [usize; 2],
    pixels: &[u8],
) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut out = Vec::with_capacity(pixels.len() / 2);
    let mut encoder = png::Encoder::new(&mut out, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(out)
}

/// A compressor of libjpeg-turbo.
struct Jpeg {
    handle: tj::tjhandle,
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
    fn new() -> Self {
        // SAFETY: no preconditions; a null handle makes every later call fail.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int) };
        Self { handle }
    }

    fn set(&mut self, parameter: tj::TJPARAM, value: c_int) {
        // SAFETY: sets a number of a handle; if that fails, so does the next call.
        unsafe { tj::tj3Set(self.handle, parameter as c_int, value) };
    }

    fn encode(
        &mut self,
        [width, height]: [usize; 2],
        pixels: &[u8],
        quality: u8,
    ) -> std::result::Result<Vec<u8>, String> {
        let (w, h) = (width as c_int, height as c_int);
        let subsampling = tj::TJSAMP_TJSAMP_444 as c_int;
        // SAFETY: computes a number.
        let most = unsafe { tj::tj3JPEGBufSize(w, h, subsampling) } as usize;
        let mut out = vec![0; most];
        let (mut to, mut n) = (out.as_mut_ptr(), most as _);
        self.set(tj::TJPARAM_TJPARAM_QUALITY, c_int::from(quality));
        self.set(tj::TJPARAM_TJPARAM_SUBSAMP, subsampling);
        self.set(tj::TJPARAM_TJPARAM_NOREALLOC, 1);
        let pixel = tj::TJPF_TJPF_RGB as c_int;
        // SAFETY: `pixels` holds h rows of w × 3 bytes without padding, `out` the
        // most bytes that they may become, and NOREALLOC keeps it where it is.
        let rc = unsafe {
            tj::tj3Compress8(
                self.handle,
                pixels.as_ptr(),
                w,
                0,
                h,
                pixel,
                &raw mut to,
                &raw mut n,
            )
        };
        if rc != 0 {
            // SAFETY: the message is a C string that lives until the next call.
            let message = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.handle)) };
            return Err(message.to_string_lossy().into_owned());
        }
        out.truncate(n as usize);
        Ok(out)
    }
}
