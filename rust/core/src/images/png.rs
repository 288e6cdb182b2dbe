//! PNG through the `png` crate: whole pictures, or row by row.

use std::io::{BufRead, Seek};

use super::Colour;
use super::codec::{Fault, Got, Shape, grow};

/// Bytes that a row may take besides its pixels: profiles, texts.
const MARGIN: usize = 64 << 20;

pub(super) fn fault(e: png::DecodingError) -> Fault {
    Fault::new("a PNG image", e.to_string())
}

/// Reads the header; 16 bits become their upper 8, palettes and few bits 8-bit samples.
pub(super) fn open<R: BufRead + Seek>(reader: R, pixels: usize) -> Result<png::Reader<R>, Fault> {
    let bytes = pixels.saturating_mul(8).saturating_add(MARGIN);
    let mut decoder = png::Decoder::new_with_limits(reader, png::Limits { bytes });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    decoder.read_info().map_err(fault)
}

/// What the samples of a picture are.
pub(super) fn got<R: BufRead + Seek>(reader: &png::Reader<R>) -> Got {
    let samples = reader.output_color_type().0.samples();
    let colour = if samples < 3 {
        Colour::Grey
    } else {
        Colour::Rgb
    };
    let width = reader.info().width as usize;
    Got {
        width,
        samples,
        colour,
    }
}

/// Decodes a whole picture.
pub(super) fn decode(coded: &[u8], shape: Shape, out: &mut Vec<u8>) -> Result<Got, Fault> {
    let pixels = shape.width.saturating_mul(shape.most);
    let mut reader = open(std::io::Cursor::new(coded), pixels)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    shape.expect("a PNG", width, height)?;
    let got = got(&reader);
    grow(out, width * height * got.samples)?;
    reader.next_frame(out).map_err(fault)?;
    Ok(got)
}
