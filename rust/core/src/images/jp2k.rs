//! JPEG 2000 through OpenJPEG: a codestream or a JP2 file, whole or tile by tile.
//!
//! OpenJPEG gives each component as 32-bit numbers of its own depth and, where
//! chroma is subsampled, its own size. Here they become interleaved 8-bit
//! samples: the upper 8 bits of deeper ones, subsampled ones repeated.

use std::ffi::{CStr, c_char, c_void};
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::ptr::{NonNull, null_mut, slice_from_raw_parts};

use openjpeg_sys as opj;

use super::Colour;
use super::codec::{Fault, Got, Shape, grow};

/// Bytes that OpenJPEG reads at a time, at most.
const BUFFER: usize = 1 << 20;

/// Most components of a picture.
const MOST: u32 = 8;

/// What OpenJPEG reads from: bytes in memory, or a part of a file.
pub(super) trait Source: Read + Seek {}

impl<T: Read + Seek> Source for T {}

/// Where the callbacks read, and what they are told.
struct State<'a> {
    source: &'a mut dyn Source,
    message: String,
}

/// A picture whose header has been read.
pub(super) struct Jp2k<'a> {
    codec: *mut opj::opj_codec_t,
    stream: *mut opj::opj_stream_t,
    image: *mut opj::opj_image_t,
    /// Handed to C: where it lies, not what holds it, is what counts.
    state: NonNull<State<'a>>,
}

impl Drop for Jp2k<'_> {
    fn drop(&mut self) {
        // SAFETY: each came from its own creation, is null or alive, and is not used again.
        unsafe {
            opj::opj_destroy_codec(self.codec);
            opj::opj_stream_destroy(self.stream);
            opj::opj_image_destroy(self.image);
        }
        // SAFETY: it came from Box::leak, and those who used it are gone.
        drop(unsafe { Box::from_raw(self.state.as_ptr()) });
    }
}

impl<'a> Jp2k<'a> {
    /// Reads the header; `length` bytes are there.
    pub(super) fn open(source: &'a mut dyn Source, length: u64) -> Result<Self, Fault> {
        let mut magic = [0; 4];
        let read = source.read_exact(&mut magic).and_then(|()| source.rewind());
        read.map_err(|e| Fault::new("a JPEG 2000 stream", e.to_string()))?;
        let format = if magic == [0xff, 0x4f, 0xff, 0x51] {
            opj::CODEC_FORMAT::OPJ_CODEC_J2K
        } else {
            opj::CODEC_FORMAT::OPJ_CODEC_JP2
        };
        let message = String::new();
        let buffer = (length as usize).clamp(64, BUFFER);
        let mut this = Self {
            // SAFETY: no preconditions; both may be null, which is checked below.
            codec: unsafe { opj::opj_create_decompress(format) },
            // SAFETY: as above.
            stream: unsafe { opj::opj_stream_create(buffer, 1) },
            image: null_mut(),
            state: NonNull::from(Box::leak(Box::new(State { source, message }))),
        };
        if this.codec.is_null() || this.stream.is_null() {
            return Err(Fault::new("memory for a JPEG 2000 decoder", "none"));
        }
        this.prepare(length)?;
        Ok(this)
    }

    fn prepare(&mut self, length: u64) -> Result<(), Fault> {
        let user = self.state.as_ptr().cast::<c_void>();
        // SAFETY: codec and stream are alive, and the state stays where the callbacks
        // look for it until both are destroyed.
        let done = unsafe {
            opj::opj_set_error_handler(self.codec, Some(keep_message), user);
            opj::opj_stream_set_user_data(self.stream, user, None);
            opj::opj_stream_set_user_data_length(self.stream, length);
            opj::opj_stream_set_read_function(self.stream, Some(read));
            opj::opj_stream_set_skip_function(self.stream, Some(skip));
            opj::opj_stream_set_seek_function(self.stream, Some(seek));
            let mut parameters = std::mem::zeroed();
            opj::opj_set_default_decoder_parameters(&raw mut parameters);
            opj::opj_setup_decoder(self.codec, &raw mut parameters) != 0
                && opj::opj_read_header(self.stream, self.codec, &raw mut self.image) != 0
        };
        self.check(done && !self.image.is_null())?;
        let components = self.image().numcomps;
        if components == 0 || components > MOST {
            let found = format!("{components} components");
            return Err(Fault::unsupported("1 to 8 components", found));
        }
        Ok(())
    }

    fn check(&self, done: bool) -> Result<(), Fault> {
        if done {
            return Ok(());
        }
        // SAFETY: it lives as long as `self`, and no call into OpenJPEG is under way.
        let message = unsafe { self.state.as_ref() }.message.trim();
        let found = if message.is_empty() {
            "damaged data"
        } else {
            message
        };
        Err(Fault::new("a JPEG 2000 stream", found))
    }

    fn image(&self) -> &opj::opj_image_t {
        // SAFETY: `prepare` has seen that it is not null, and only `drop` frees it.
        unsafe { &*self.image }
    }

    /// Width and height, and those of its tiles; none if tiles do not start at 0.
    pub(super) fn sizes(&self) -> ([usize; 2], Option<[usize; 2]>) {
        let image = self.image();
        let size = [image.x1 - image.x0, image.y1 - image.y0].map(|side| side as usize);
        // SAFETY: the codec is alive and its header has been read; the information
        // is freed by the call that made it for us.
        let (start, tile) = unsafe {
            let mut info = opj::opj_get_cstr_info(self.codec);
            if info.is_null() {
                return (size, None);
            }
            let found = ([(*info).tx0, (*info).ty0], [(*info).tdx, (*info).tdy]);
            opj::opj_destroy_cstr_info(&raw mut info);
            found
        };
        let plain = start == [0, 0] && [image.x0, image.y0] == [0, 0];
        (size, plain.then(|| tile.map(|side| side as usize)))
    }

    /// Decodes all of it, or one of its tiles.
    pub(super) fn decode(
        self,
        tile: Option<usize>,
        colour: Colour,
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Result<Got, Fault> {
        // SAFETY: codec, stream and image are alive and belong together.
        let done = unsafe {
            match tile {
                None => opj::opj_decode(self.codec, self.stream, self.image) != 0,
                Some(tile) => {
                    let tile = tile as u32;
                    opj::opj_get_decoded_tile(self.codec, self.stream, self.image, tile) != 0
                }
            }
        };
        self.check(done)?;
        self.interleave(colour, shape, out)
    }

    fn interleave(&self, colour: Colour, shape: Shape, out: &mut Vec<u8>) -> Result<Got, Fault> {
        let image = self.image();
        let (width, height) = (image.x1 - image.x0, image.y1 - image.y0);
        shape.expect("a JPEG 2000", width as usize, height as usize)?;
        let samples = image.numcomps as usize;
        // SAFETY: OpenJPEG keeps `numcomps` components there.
        let components = unsafe { &*slice_from_raw_parts(image.comps, samples) };
        grow(out, width as usize * height as usize * samples)?;
        for (at, component) in components.iter().enumerate() {
            spread(component, width as usize, &mut out[at..], samples)?;
        }
        let converted = matches!(colour, Colour::YCbCr { .. })
            || image.color_space == opj::COLOR_SPACE::OPJ_CLRSPC_SYCC;
        let colour = match (samples, colour) {
            (_, Colour::GreyInverted | Colour::Palette | Colour::Cmyk { .. }) => colour,
            (1 | 2, _) => Colour::Grey,
            _ if converted => Colour::YCbCr { across: 1, down: 1 },
            _ => Colour::Rgb,
        };
        Ok(Got {
            width: width as usize,
            samples,
            colour,
        })
    }
}

/// Writes a component's samples to every `step`-th byte of `out`, rows of `width`.
fn spread(
    component: &opj::opj_image_comp_t,
    width: usize,
    out: &mut [u8],
    step: usize,
) -> Result<(), Fault> {
    let (w, h) = (component.w as usize, component.h as usize);
    let [dx, dy] = [component.dx, component.dy].map(|d| d.max(1) as usize);
    if component.data.is_null() || w == 0 || h == 0 || component.prec == 0 {
        return Err(Fault::new("samples of each component", "none"));
    }
    // SAFETY: OpenJPEG keeps w × h numbers there, and has just decoded them.
    let data = unsafe { &*slice_from_raw_parts(component.data, w * h) };
    let byte = to_byte(component);
    for (y, row) in out.chunks_mut(width * step).enumerate() {
        let from = &data[(y / dy).min(h - 1) * w..][..w];
        if dx == 1 && w >= width {
            row.iter_mut()
                .step_by(step)
                .zip(from)
                .for_each(|(to, &v)| *to = byte(v));
        } else {
            let pixels = row.iter_mut().step_by(step).enumerate();
            pixels.for_each(|(x, to)| *to = byte(from[(x / dx).min(w - 1)]));
        }
    }
    Ok(())
}

/// From a component's numbers to 8 bits: the upper ones of deeper samples; fewer
/// are spread over all 8, so that the largest becomes 255.
fn to_byte(component: &opj::opj_image_comp_t) -> impl Fn(i32) -> u8 + use<> {
    let bits = component.prec.min(31);
    let sign = if component.sgnd != 0 {
        1 << (bits - 1)
    } else {
        0
    };
    let down = bits.saturating_sub(8);
    let top = (1_i32 << bits.min(8)) - 1;
    move |value| {
        let value = (value.wrapping_add(sign) >> down).clamp(0, top);
        (if top == 255 { value } else { value * 255 / top }) as u8
    }
}

/// Decodes a stream in memory.
pub(super) fn decode(
    coded: &[u8],
    colour: Colour,
    shape: Shape,
    out: &mut Vec<u8>,
) -> Result<Got, Fault> {
    let mut source = Cursor::new(coded);
    let picture = Jp2k::open(&mut source, coded.len() as u64)?;
    let ([width, height], _) = picture.sizes();
    shape.expect("a JPEG 2000", width, height)?;
    picture.decode(None, colour, shape, out)
}

/// SAFETY of the four: OpenJPEG hands back the state that it was given, which is
/// alive while it is called, and buffers of the size that it says.
unsafe extern "C" fn keep_message(message: *const c_char, user: *mut c_void) {
    // SAFETY: as above; the message is a C string.
    let (state, message) = unsafe { (&mut *user.cast::<State<'_>>(), CStr::from_ptr(message)) };
    if state.message.is_empty() {
        state.message = message.to_string_lossy().into_owned();
    }
}

unsafe extern "C" fn read(to: *mut c_void, n: usize, user: *mut c_void) -> usize {
    // SAFETY: as above.
    let state = unsafe { &mut *user.cast::<State<'_>>() };
    // SAFETY: as above.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), n) };
    match state.source.read(to) {
        Ok(n) if n > 0 => n,
        _ => usize::MAX,
    }
}

unsafe extern "C" fn skip(n: i64, user: *mut c_void) -> i64 {
    // SAFETY: as above.
    let state = unsafe { &mut *user.cast::<State<'_>>() };
    state.source.seek(SeekFrom::Current(n)).map_or(-1, |_| n)
}

unsafe extern "C" fn seek(at: i64, user: *mut c_void) -> i32 {
    // SAFETY: as above.
    let state = unsafe { &mut *user.cast::<State<'_>>() };
    let at = SeekFrom::Start(at.max(0) as u64);
    i32::from(state.source.seek(at).is_ok())
}
