//! Encoded tiles of many slides copied into tar shards, in any order.
//!
//! Where each member will lie follows from the lengths alone. So a shard is
//! filled in the order in which its tiles lie in their sources, each file of
//! which is opened once a shard, and holds one tile in memory. Members are named
//! by the row that their tile has in the index, hence are short and unique.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, expect_len};
use crate::io::ReadAt;
use crate::sweep::sweep;
use crate::tiles::Texts;
use crate::watch::Watch;

/// Bytes to a whole number of which tar pads what it holds.
const BLOCK: u64 = 512;

/// Where the encoded tiles of consecutive rows lie, and what is said of each.
#[derive(Debug, Clone, Copy)]
pub struct Tiles<'a> {
    /// Files that hold tiles.
    pub sources: &'a [PathBuf],
    /// Which of the files each tile is in.
    pub source: &'a [u32],
    /// Where it starts there, in bytes.
    pub offset: &'a [u64],
    /// Its bytes.
    pub length: &'a [u32],
    /// JSON that stands beside each.
    pub notes: Texts<'a>,
    /// Ending of the members' names.
    pub extension: &'a str,
    /// Row of the first tile.
    pub first: u64,
}

/// A shard to write: a file, and its range of the tiles.
#[derive(Debug, Clone, Copy)]
pub struct Shard<'a> {
    /// The file, which appears when it is whole.
    pub path: &'a Path,
    /// Its first tile.
    pub start: usize,
    /// One after its last tile.
    pub end: usize,
}

/// Copies tiles into shards, many shards at a time.
///
/// Returns where each tile's bytes start in its shard.
pub fn copy(tiles: Tiles<'_>, shards: &[Shard<'_>], watch: &Watch) -> Result<Vec<u64>> {
    let n = tiles.source.len();
    expect_len("offset", tiles.offset.len(), n)?;
    expect_len("length", tiles.length.len(), n)?;
    expect_len("notes", tiles.notes.len(), n)?;
    let mut starts = vec![0; n];
    for shard in shards {
        let bad = Error::Index {
            what: "shards",
            bound: n,
            found: shard.end as i64,
        };
        let part = starts.get_mut(shard.start..shard.end).ok_or(bad)?;
        tiles.lay_out(shard, part);
    }
    sweep(shards.len(), watch, Vec::new, |buffer, number| {
        let shard = &shards[number];
        tiles.fill(shard, &starts[shard.start..shard.end], buffer, watch)
    })?;
    Ok(starts)
}

impl Tiles<'_> {
    /// Bytes of a tile's two members with their headers.
    fn entry(&self, i: usize) -> u64 {
        let note = self.notes.get(i).len() as u64;
        2 * BLOCK + u64::from(self.length[i]).next_multiple_of(BLOCK) + note.next_multiple_of(BLOCK)
    }

    fn lay_out(&self, shard: &Shard<'_>, starts: &mut [u64]) {
        let mut at = BLOCK;
        for (i, start) in (shard.start..).zip(starts) {
            *start = at;
            at += self.entry(i);
        }
    }

    fn fill(
        &self,
        shard: &Shard<'_>,
        starts: &[u64],
        buffer: &mut Vec<u8>,
        watch: &Watch,
    ) -> Result<()> {
        let path = shard.path;
        let part = path.with_extension("part");
        let failed = |e| Error::io(path, e);
        let mut file = File::create(&part).map_err(failed)?;
        let bytes: u64 = (shard.start..shard.end).map(|i| self.entry(i)).sum();
        // The end of an archive is two blocks of zeros.
        file.set_len(bytes + 2 * BLOCK).map_err(failed)?;
        let mut order: Vec<usize> = (shard.start..shard.end).collect();
        order.sort_unstable_by_key(|&i| (self.source[i], self.offset[i]));
        let mut open: Option<(u32, ReadAt)> = None;
        for i in order {
            watch.check()?;
            let source = match open.take() {
                Some((number, source)) if number == self.source[i] => source,
                _ => ReadAt::open(self.path(i)?)?,
            };
            let (offset, length) = (self.offset[i], u64::from(self.length[i]));
            source.read("tile", offset, length, buffer)?;
            open = Some((self.source[i], source));
            let at = starts[i - shard.start] - BLOCK;
            let members = self.members(i, buffer).map_err(failed)?;
            file.seek(SeekFrom::Start(at)).map_err(failed)?;
            file.write_all(&members).map_err(failed)?;
            watch.advance(1);
        }
        file.sync_all().map_err(failed)?;
        fs::rename(&part, path).map_err(failed)
    }

    fn path(&self, i: usize) -> Result<&PathBuf> {
        let number = self.source[i];
        self.sources.get(number as usize).ok_or(Error::Index {
            what: "source",
            bound: self.sources.len(),
            found: i64::from(number),
        })
    }

    /// A tile and its note as tar holds them.
    fn members(&self, i: usize, tile: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.entry(i) as usize);
        for (extension, bytes) in [(self.extension, tile), ("json", self.notes.get(i))] {
            let mut header = tar::Header::new_gnu();
            header.set_path(format!("{:09}.{extension}", self.first + i as u64))?;
            header.set_size(bytes.len() as u64);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(bytes);
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        }
        Ok(out)
    }
}
