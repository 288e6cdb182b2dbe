//! How the pixels of a level are reached.
//!
//! Most files store a grid of blocks. One that stores a single large block may
//! still have places inside where decoding can start: restart markers of a
//! JPEG, tiles of a JPEG 2000. Where there are none, it is read in one pass.

use std::io::BufReader;
use std::sync::Arc;

use super::bands::{Bands, rows_of_band};
use super::codec::Codec;
use super::jp2k::Jp2k;
use super::jpeg::Jpeg;
use super::{Layout, Level, png};
use crate::Watch;
use crate::error::Result;
use crate::io::Section;

/// Pixels from which on a single block is looked into.
const LARGE: usize = 1 << 20;

/// Rows of a pass's band, of pictures that are not tall.
const ROWS: usize = 128;

/// Rows that all ways of sharing chroma between rows divide.
const UNIT: usize = 16;

/// How blocks are found and decoded.
#[derive(Debug)]
pub(super) enum Access {
    /// Each block on its own, as the file stores it.
    Grid,
    /// Bands of a JPEG between restart markers.
    Bands(Bands),
    /// Tiles within a JPEG 2000 picture.
    Jp2k { tile: [usize; 2] },
    /// Bands of so many rows, from top to bottom only.
    Stream { rows: usize },
}

impl Access {
    pub(super) fn find(level: &Level, watch: &Watch) -> Result<Self> {
        let layout = &level.layout;
        let large = layout.width.saturating_mul(layout.height) >= LARGE;
        let found = match layout.codec {
            _ if !large || !layout.is_one_block() => Self::Grid,
            // A stream a plane: what is within one is not within the others.
            Codec::Jpeg if layout.planar => Self::stream(layout),
            Codec::Jp2k if layout.planar => Self::Grid,
            Codec::Jpeg => Self::of_jpeg(level, watch)?,
            Codec::Jp2k => Self::of_jp2k(level),
            Codec::Png => Self::of_png(level),
            Codec::WebP | Codec::JpegScan => Self::Grid,
            _ => Self::stream(layout),
        };
        layout.check_block(level.file.path(), found.block(layout))?;
        Ok(found)
    }

    pub(super) fn block(&self, layout: &Layout) -> [usize; 2] {
        match self {
            Self::Grid => [layout.block_width, layout.block_height],
            Self::Bands(bands) => [layout.width, bands.rows],
            Self::Jp2k { tile } => *tile,
            Self::Stream { rows } => [layout.width, *rows],
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Grid => "blocks",
            Self::Bands(_) => "restart markers",
            Self::Jp2k { .. } => "tiles within",
            Self::Stream { .. } => "one pass",
        }
    }

    fn stream(layout: &Layout) -> Self {
        let rows = rows_of_band(layout.width, layout.height, UNIT, ROWS / UNIT);
        Self::Stream { rows }
    }

    /// A header that cannot be read is reported when the block is decoded.
    fn of_jpeg(level: &Level, watch: &Watch) -> Result<Self> {
        let layout = &level.layout;
        let (section, length) = level.section();
        let Ok(jpeg) = Jpeg::from(&layout.tables, section, layout.colour) else {
            return Ok(Self::Grid);
        };
        let info = jpeg.info;
        if (info.width as usize, info.height as usize) != (layout.width, layout.height) {
            return Ok(Self::Grid);
        }
        let start = layout.offsets[0];
        let scan_at = jpeg.position();
        drop(jpeg);
        let mut header = Vec::new();
        level
            .file
            .read("image", start, scan_at - start, &mut header)?;
        if layout.tables.len() > 4 {
            let body = layout.tables[2..layout.tables.len() - 2].iter().copied();
            header.splice(2..2, body);
        }
        let end = start + length;
        let scan = Section::new(Arc::clone(&level.file), scan_at, end - scan_at);
        let bands = Bands::find(layout, header, info, scan, watch)?;
        Ok(bands.map_or_else(|| Self::stream(layout), Self::Bands))
    }

    fn of_jp2k(level: &Level) -> Self {
        let (mut section, length) = level.section();
        let layout = &level.layout;
        let Ok(picture) = Jp2k::open(&mut section, length) else {
            return Self::Grid;
        };
        match picture.sizes() {
            (size, Some(tile)) if size == [layout.width, layout.height] && tile != size => {
                Self::Jp2k {
                    tile: [tile[0].min(size[0]), tile[1].min(size[1])],
                }
            }
            _ => Self::Grid,
        }
    }

    fn of_png(level: &Level) -> Self {
        match png::open(BufReader::new(level.section().0), 0) {
            Ok(reader) if !reader.info().interlaced => Self::stream(&level.layout),
            _ => Self::Grid,
        }
    }
}
