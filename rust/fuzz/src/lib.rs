//! What all fuzz targets do: a block of whatever bytes, in whatever layout, through
//! one codec. Any outcome is right but a crash, a hang or a huge memory.

use std::io::Write;
use std::path::PathBuf;

use stfast_core::Watch;
use stfast_core::images::{Codec, Colour, Decoder, Layout, Level};

/// The first bytes choose the layout, the rest is the block.
pub fn decode(codec: Codec, data: &[u8]) {
    let Some((&[width, height, flags, chroma], rest)) = data.split_first_chunk() else {
        return;
    };
    // Every tenth layout is large enough to be looked into, and read in one pass.
    let scale = if flags % 10 == 9 { 8 } else { 1 };
    let (width, height) = ((usize::from(width) + 1) * scale, (usize::from(height) + 1) * scale);
    let planar = flags & 1 != 0;
    let samples = usize::from(flags >> 1 & 3) + 1;
    let planes = if planar { samples } else { 1 };
    let (apart, tables) = rest.split_at(rest.len().min(usize::from(flags >> 5) * 32));
    let layout = Layout {
        width,
        height,
        block_width: width,
        block_height: height,
        padded: flags & 8 != 0,
        samples,
        planar,
        bits: if flags & 16 != 0 { 16 } else { 8 },
        big_endian: chroma & 128 != 0,
        codec,
        differenced: chroma & 64 != 0,
        colour: colour(chroma),
        pick: (flags & 64 != 0).then_some([0, 1, 2]),
        palette: vec![7; 768],
        tables: tables.iter().take(600).copied().collect(),
        offsets: vec![0; planes],
        lengths: vec![apart.len().max(rest.len()) as u64; planes],
    };
    run(layout, rest);
}

fn colour(chroma: u8) -> Colour {
    let (across, down) = (1 << (chroma >> 3 & 1), 1 << (chroma >> 4 & 1));
    match chroma & 7 {
        0 => Colour::Grey,
        1 => Colour::GreyInverted,
        2 => Colour::Rgb,
        3 => Colour::Palette,
        4 => Colour::Cmyk { inverted: false },
        5 => Colour::YCbCr { across, down },
        _ => Colour::Stream,
    }
}

fn run(layout: Layout, block: &[u8]) {
    let path = path();
    let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(block));
    written.expect("a file for the block");
    let watch = Watch::default();
    let Ok(level) = Level::open(&path, layout) else {
        return;
    };
    if let Ok(blocks) = level.blocks(&watch) {
        let (mut decoder, mut out) = (Decoder::default(), Vec::new());
        drop(blocks.decode(0, &mut decoder, &mut out, &watch));
    }
}

/// In memory where there is such a file system.
fn path() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("stfast-fuzz-{}", std::process::id()))
}
