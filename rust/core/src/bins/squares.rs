//! Names of squares, such as `s_002um_00012_00034-1`: row and column are in them.

use rayon::prelude::*;

/// Reads row and column of texts of `width` bytes, filled up with zeros.
///
/// `false` if any of them is no square of `size` µm; a suffix such as `-1` may be missing.
pub fn parse(texts: &[u8], width: usize, size: u32, rows: &mut [i32], cols: &mut [i32]) -> bool {
    let fits = width > 0 && texts.len() == rows.len() * width && rows.len() == cols.len();
    let places = rows.par_iter_mut().zip(cols);
    fits && (places.zip(texts.par_chunks(width)))
        .map(|((row, col), text)| {
            let Some((at_row, at_col)) = square(text, size) else {
                return false;
            };
            (*row, *col) = (at_row, at_col);
            true
        })
        .reduce(|| true, |all, one| all & one)
}

/// Row and column of a square.
fn square(text: &[u8], size: u32) -> Option<(i32, i32)> {
    let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
    let text = text[..end].strip_prefix(b"s_")?;
    let (um, text) = number(text)?;
    let (row, text) = number(text.strip_prefix(b"um_")?)?;
    let (col, text) = number(text.strip_prefix(b"_")?)?;
    let suffixed = match text {
        [] => true,
        [b'-', digits @ ..] => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    (suffixed && um == size as i32).then_some((row, col))
}

/// The number that a text starts with, and what comes after it.
fn number(text: &[u8]) -> Option<(i32, &[u8])> {
    let n = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if !(1..=9).contains(&n) {
        return None;
    }
    let digits = text[..n].iter();
    let value = digits.fold(0, |value, &b| value * 10 + i32::from(b - b'0'));
    Some((value, &text[n..]))
}
