//! Encoded tiles in the shards of a dataset: read at an offset, decoded into their place.
//!
//! An index says where each tile lies, so no tar header is ever walked and any
//! order of tiles costs the same: one positioned read a tile. What a tile is, its
//! first bytes say.

use std::ffi::{CStr, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;
use turbojpeg_sys as tj;

use crate::error::{Result, expect_len};
use crate::images::RGB;
use crate::io::ReadAt;
use crate::{Error, Watch};

/// Shards whose files stay open; those beyond are opened for each read, so that
/// thousands of shards stay below the limit of open files.
const MOST_OPEN: usize = 128;

/// The longest header of a `.npy` tile that is looked for.
const NPY_HEADER: usize = 1024;

/// The files of a dataset's shards, opened when first read.
#[derive(Debug)]
pub struct Shards {
    files: Vec<(PathBuf, OnceLock<ReadAt>)>,
    open: AtomicUsize,
}

impl Shards {
    /// Shards by their paths; nothing is opened yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let files = paths.into_iter().map(|path| (path, OnceLock::new()));
        Self {
            files: files.collect(),
            open: AtomicUsize::new(0),
        }
    }

    fn with<T>(&self, shard: u32, read: impl FnOnce(&ReadAt) -> Result<T>) -> Result<T> {
        let Some((path, kept)) = self.files.get(shard as usize) else {
            let (what, bound) = ("shard", self.files.len());
            return Err(Error::Index {
                what,
                bound,
                found: i64::from(shard),
            });
        };
        if let Some(file) = kept.get() {
            return read(file);
        }
        let file = ReadAt::open(path)?;
        if self.open.fetch_add(1, Relaxed) < MOST_OPEN {
            return read(kept.get_or_init(|| file));
        }
        read(&file)
    }

    fn path(&self, shard: u32) -> &Path {
        self.files
            .get(shard as usize)
            .map_or(Path::new(""), |(path, _)| path)
    }
}

/// Where each tile of a batch lies: shard, and offset and length in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Coded<'a> {
    /// Number of the shard.
    pub shard: &'a [u32],
    /// First byte in the shard's file.
    pub offset: &'a [u64],
    /// Bytes of the encoded tile.
    pub length: &'a [u32],
}

impl Coded<'_> {
    fn check(&self) -> Result<usize> {
        expect_len("offset", self.offset.len(), self.shard.len())?;
        expect_len("length", self.length.len(), self.shard.len())?;
        Ok(self.shard.len())
    }
}

/// Copies the encoded tiles, end to end, into `out`.
pub fn read(shards: &Shards, tiles: Coded<'_>, out: &mut [u8], watch: &Watch) -> Result<()> {
    let n = tiles.check()?;
    let total = tiles.length.iter().map(|&length| length as usize).sum();
    expect_len("out", out.len(), total)?;
    let mut parts = Vec::with_capacity(n);
    let mut rest = out;
    for &length in tiles.length {
        let (part, after) = rest.split_at_mut(length as usize);
        parts.push(part);
        rest = after;
    }
    parts.into_par_iter().enumerate().try_for_each(|(i, part)| {
        watch.check()?;
        shards.with(tiles.shard[i], |file| {
            file.fill("a tile", tiles.offset[i], part)
        })
    })
}

/// Decodes tiles of `size` × `size` pixels into `out` (n, size, size, 3).
///
/// Where `lenient`, a tile that cannot be read or decoded is left white, and
/// returned with what is wrong; else the first one ends the call.
pub fn decode(
    shards: &Shards,
    tiles: Coded<'_>,
    size: usize,
    lenient: bool,
    out: &mut [u8],
    watch: &Watch,
) -> Result<Vec<(usize, String)>> {
    let n = tiles.check()?;
    let bytes = size * size * RGB;
    expect_len("out", out.len(), n * bytes)?;
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let faults = (out.par_chunks_mut(bytes).enumerate())
        .map_init(Decoder::default, |decoder, (i, out)| {
            watch.check()?;
            let place = (tiles.shard[i], tiles.offset[i], tiles.length[i]);
            let result = decoder.decode(shards, place, size, out);
            watch.advance(1);
            match result {
                Err(Error::Cancelled) => Err(Error::Cancelled),
                Err(fault) if lenient => {
                    out.fill(255);
                    Ok(Some((i, fault.to_string())))
                }
                other => other.map(|()| None),
            }
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(faults.into_iter().flatten().collect())
}

/// One thread's buffers and decoder.
#[derive(Default)]
struct Decoder {
    coded: Vec<u8>,
    pixels: Vec<u8>,
    jpeg: Option<Jpeg>,
}

impl Decoder {
    fn decode(
        &mut self,
        shards: &Shards,
        (shard, offset, length): (u32, u64, u32),
        size: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let header = (length as usize).saturating_sub(out.len());
        let fault = |expected: String, found: String| Error::Format {
            path: shards.path(shard).to_owned(),
            what: format!("the tile at byte {offset}"),
            expected,
            found,
        };
        let raw = shards.with(shard, |file| {
            if (1..NPY_HEADER).contains(&header) {
                file.read("a tile", offset, header as u64, &mut self.coded)?;
                if self.coded.starts_with(b"\x93NUMPY") {
                    npy(&self.coded, size).map_err(|found| fault(shape(size), found))?;
                    file.fill("a tile", offset + header as u64, out)?;
                    return Ok(true);
                }
            }
            file.read("a tile", offset, u64::from(length), &mut self.coded)?;
            Ok(false)
        })?;
        if raw {
            return Ok(());
        }
        self.pixels(size, out)
            .map_err(|found| fault(format!("JPEG, PNG or .npy of {}", shape(size)), found))
    }

    /// JPEG or PNG, as the first bytes say.
    fn pixels(&mut self, size: usize, out: &mut [u8]) -> std::result::Result<(), String> {
        match self.coded.first_chunk() {
            Some(&[0xff, 0xd8, _, _]) => {
                // A handle that met damage may fail on good tiles after it: it is not kept.
                let mut jpeg = self.jpeg.take().unwrap_or_else(Jpeg::new);
                let result = jpeg.decode(&self.coded, size, out);
                self.jpeg = result.is_ok().then_some(jpeg);
                result
            }
            Some(b"\x89PNG") => png(&self.coded, size, &mut self.pixels, out),
            _ => Err("other bytes".to_owned()),
        }
    }
}

fn shape(size: usize) -> String {
    format!("{size} × {size} × 3 bytes")
}

/// Holds the header of a `.npy` tile against the shape that is expected, and its own length
/// (NEP 1, version 1.0) against the index's.
fn npy(header: &[u8], size: usize) -> std::result::Result<(), String> {
    let text = String::from_utf8_lossy(&header[10.min(header.len())..]);
    let length = header
        .get(8..10)
        .map(|n| 10 + usize::from(u16::from_le_bytes([n[0], n[1]])));
    if length != Some(header.len()) {
        return Err(format!("a header of other than {} bytes", header.len()));
    }
    let words = [
        "'descr': '|u1'",
        "'fortran_order': False",
        &format!("({size}, {size}, 3)"),
    ];
    match words.iter().all(|word| text.contains(word)) {
        true => Ok(()),
        false => Err(text.trim().to_owned()),
    }
}

fn png(
    coded: &[u8],
    size: usize,
    pixels: &mut Vec<u8>,
    out: &mut [u8],
) -> std::result::Result<(), String> {
    let bytes = out.len() * 8 + (1 << 20);
    let mut decoder =
        png::Decoder::new_with_limits(std::io::Cursor::new(coded), png::Limits { bytes });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(|e| e.to_string())?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if (width, height) != (size, size) {
        return Err(format!("{height} × {width} pixels"));
    }
    if reader.output_color_type().0 == png::ColorType::Rgb {
        return reader.next_frame(out).map(drop).map_err(|e| e.to_string());
    }
    let samples = reader.output_color_type().0.samples();
    pixels.resize(size * size * samples, 0);
    reader.next_frame(pixels).map_err(|e| e.to_string())?;
    for (out, pixel) in out.chunks_exact_mut(RGB).zip(pixels.chunks_exact(samples)) {
        match *pixel {
            [grey] | [grey, _] => out.fill(grey),
            _ => out.copy_from_slice(&pixel[..RGB]),
        }
    }
    Ok(())
}

/// A decompressor of libjpeg-turbo: its default, exact integer transform, as Pillow's.
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
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) };
        // A warning is damage: a tile whose end is missing must not pass for a tile.
        // SAFETY: sets a number of a handle; if that fails, so does the next call.
        unsafe { tj::tj3Set(handle, tj::TJPARAM_TJPARAM_STOPONWARNING as c_int, 1) };
        Self { handle }
    }

    fn decode(
        &mut self,
        coded: &[u8],
        size: usize,
        out: &mut [u8],
    ) -> std::result::Result<(), String> {
        // SAFETY: reads the header within the slice.
        let rc = unsafe { tj::tj3DecompressHeader(self.handle, coded.as_ptr(), coded.len() as _) };
        if rc != 0 {
            return Err(self.fault());
        }
        let (width, height) = (
            self.get(tj::TJPARAM_TJPARAM_JPEGWIDTH),
            self.get(tj::TJPARAM_TJPARAM_JPEGHEIGHT),
        );
        if (width, height) != (size as c_int, size as c_int) {
            return Err(format!("{height} × {width} pixels"));
        }
        let pixel = tj::TJPF_TJPF_RGB as c_int;
        // SAFETY: the header says size × size pixels, and `out` holds as many of
        // 3 bytes, rows without padding, as the caller's chunks are made.
        let rc = unsafe {
            tj::tj3Decompress8(
                self.handle,
                coded.as_ptr(),
                coded.len() as _,
                out.as_mut_ptr(),
                0,
                pixel,
            )
        };
        if rc != 0 {
            return Err(self.fault());
        }
        Ok(())
    }

    fn get(&self, parameter: tj::TJPARAM) -> c_int {
        // SAFETY: reads a number of a handle.
        unsafe { tj::tj3Get(self.handle, parameter as c_int) }
    }

    fn fault(&self) -> String {
        // SAFETY: the message is a C string that lives until the next call.
        let message = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.handle)) };
        message.to_string_lossy().into_owned()
    }
}
