//! WebP through libwebp, the library that tifffile and Pillow decode it by.

use libwebp_sys::{WebPBitstreamFeatures, WebPDecodeRGBInto, WebPGetFeatures};

use super::codec::{Fault, Got, Shape, grow};
use super::{Colour, RGB};

/// Decodes a picture to RGB rows; alpha is dropped, as it is everywhere.
pub(super) fn decode(coded: &[u8], shape: Shape, out: &mut Vec<u8>) -> Result<Got, Fault> {
    // SAFETY: an all-zero struct of integers is a valid one.
    let mut features: WebPBitstreamFeatures = unsafe { std::mem::zeroed() };
    // SAFETY: pointer and length are those of one slice; the struct is ours.
    let status = unsafe { WebPGetFeatures(coded.as_ptr(), coded.len(), &raw mut features) };
    if status as u32 != 0 {
        return Err(Fault::new("a WebP image", format!("{status:?}")));
    }
    if features.has_animation != 0 {
        return Err(Fault::unsupported("a WebP of one picture", "an animation"));
    }
    let (width, height) = (
        features.width.max(0) as usize,
        features.height.max(0) as usize,
    );
    shape.expect("a WebP", width, height)?;
    let stride = width * RGB;
    grow(out, stride * height)?;
    // SAFETY: `out` holds `height` rows of `stride` bytes, and its size is given.
    let done = unsafe {
        WebPDecodeRGBInto(
            coded.as_ptr(),
            coded.len(),
            out.as_mut_ptr(),
            out.len(),
            stride as i32,
        )
    };
    if done.is_null() {
        return Err(Fault::new("a WebP image", "damaged or missing data"));
    }
    Ok(Got {
        width,
        samples: RGB,
        colour: Colour::Rgb,
    })
}
