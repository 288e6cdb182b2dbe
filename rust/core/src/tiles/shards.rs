//! Tiles into files: tar shards, shards of a zarr array, or a file each.
//!
//! Threads cut and encode tiles in whatever order; the files hold them in the
//! order given, so that their bytes do not depend on the threads. A shard gets
//! its name when it is whole, and after it a sidecar, a line a tile, that says so
//! to a later run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::encode::{Encoder, Encoding};
use crate::Error;
use crate::error::{Result, expect_len};

/// Bytes written to a file at a time.
const CHUNK: usize = 1 << 20;

/// Bytes to a whole number of which tar pads what it holds.
const BLOCK: u64 = 512;

/// What files tiles are put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// Tar files as WebDataset reads them.
    Tar,
    /// Shards of a zarr v3 array whose inner chunks are tiles.
    Zarr,
    /// A file a tile.
    Folder,
}

/// Texts laid end to end.
#[derive(Debug, Clone, Copy)]
pub struct Texts<'a> {
    /// All of them.
    pub bytes: &'a [u8],
    /// Where each starts, and where the last one ends; empty: no texts.
    pub offsets: &'a [i64],
}

impl<'a> Texts<'a> {
    pub(crate) fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    pub(crate) fn get(&self, i: usize) -> &'a [u8] {
        let at = |i: usize| self.offsets.get(i).map_or(0, |&at| at.max(0) as usize);
        self.bytes.get(at(i)..at(i + 1)).unwrap_or(&[])
    }
}

/// Where and how tiles are written.
pub struct Shards<'a> {
    container: Container,
    encoding: Encoding,
    folder: &'a Path,
    names: Texts<'a>,
    notes: Texts<'a>,
    /// The place of each tile in the order.
    ranks: Vec<u32>,
    per_shard: usize,
    done: &'a [bool],
    state: Mutex<State>,
}

/// A tile on its way into a shard.
struct Entry {
    tile: usize,
    bytes: Vec<u8>,
    line: String,
}

#[derive(Default)]
struct State {
    next: usize,
    waiting: BTreeMap<usize, Entry>,
    shard: Option<Shard>,
}

enum Body {
    Tar(Box<tar::Builder<BufWriter<File>>>),
    Zarr(BufWriter<File>, Vec<u64>),
    Folder,
}

/// A shard while it is written.
struct Shard {
    number: usize,
    part: PathBuf,
    body: Body,
    lines: String,
    written: u64,
}

impl<'a> Shards<'a> {
    /// Shards of `per_shard` tiles in the order of `order`; those `done` are left alone.
    ///
    /// `names` are the tiles' names in the files, `notes` what stands beside them.
    pub fn new(
        (container, encoding): (Container, Encoding),
        folder: &'a Path,
        [names, notes]: [Texts<'a>; 2],
        order: &[u32],
        per_shard: usize,
        done: &'a [bool],
    ) -> Result<Self> {
        let per_shard = per_shard.max(1);
        expect_len("done", done.len(), order.len().div_ceil(per_shard))?;
        let mut ranks = vec![0; order.len()];
        for (rank, &tile) in order.iter().enumerate() {
            let bound = ranks.len();
            let found = i64::from(tile);
            *(ranks.get_mut(tile as usize)).ok_or(Error::Index {
                what: "order",
                bound,
                found,
            })? = rank as u32;
        }
        let shards = Self {
            container,
            encoding,
            folder,
            names,
            notes,
            ranks,
            per_shard,
            done,
            state: Mutex::default(),
        };
        let next = shards.next_wanted(0);
        shards
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next = next;
        Ok(shards)
    }

    /// Whether a tile's shard is still to be written.
    pub(super) fn wants(&self, tile: usize) -> bool {
        (self.ranks.get(tile)).is_some_and(|&rank| !self.done[rank as usize / self.per_shard])
    }

    /// The first place from `rank` on whose shard is not done.
    fn next_wanted(&self, rank: usize) -> usize {
        let mut shard = rank / self.per_shard;
        if !self.done.get(shard).copied().unwrap_or(false) {
            return rank;
        }
        while self.done.get(shard).copied().unwrap_or(false) {
            shard += 1;
        }
        shard * self.per_shard
    }

    /// Encodes a tile and writes it as soon as those before it have been.
    pub(super) fn put(
        &self,
        tile: usize,
        size: [usize; 2],
        pixels: &[u8],
        (valid, fault): (f32, Option<String>),
        encoder: &mut Encoder,
    ) -> Result<()> {
        let mut bytes = encoder.encode(self.encoding, size, pixels, self.folder)?;
        if self.container == Container::Folder {
            let name = self.name(tile, self.encoding.extension());
            let path = self.folder.join(&name);
            let part = self.folder.join(format!(".{name}.part"));
            let done = fs::write(&part, &bytes).and_then(|()| fs::rename(&part, &path));
            done.map_err(|e| Error::io(&path, e))?;
            bytes = Vec::new();
        }
        let fault = fault.unwrap_or_default().replace(['\t', '\n', '"'], " ");
        let line = format!("{valid}\t{fault}");
        let rank = self.ranks[tile] as usize;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.insert(rank, Entry { tile, bytes, line });
        self.write_ready(&mut state)
    }

    fn write_ready(&self, state: &mut State) -> Result<()> {
        while let Some(entry) = state.waiting.remove(&state.next) {
            let number = state.next / self.per_shard;
            if state.shard.is_none() {
                state.shard = Some(self.begin(number)?);
            }
            if let Some(shard) = &mut state.shard {
                (self.append(shard, entry)).map_err(|e| Error::io(&self.path(number), e))?;
            }
            state.next += 1;
            let ended = state.next.is_multiple_of(self.per_shard) || state.next == self.ranks.len();
            if let Some(shard) = state.shard.take_if(|_| ended) {
                self.finish(shard)
                    .map_err(|e| Error::io(&self.path(number), e))?;
                state.next = self.next_wanted(state.next);
            }
        }
        Ok(())
    }

    fn name(&self, tile: usize, extension: &str) -> String {
        let name = String::from_utf8_lossy(self.names.get(tile));
        format!("{name}.{extension}")
    }

    /// The file of a shard; of a folder's, its sidecar.
    fn path(&self, number: usize) -> PathBuf {
        match self.container {
            Container::Tar => self.folder.join(format!("tiles-{number:06}.tar")),
            Container::Zarr => self.folder.join(format!("c/{number}/0/0/0")),
            Container::Folder => self.sidecar(number),
        }
    }

    fn sidecar(&self, number: usize) -> PathBuf {
        self.folder.join(format!(".shard-{number:06}.tsv"))
    }

    fn begin(&self, number: usize) -> Result<Shard> {
        let part = self.folder.join(format!(".shard-{number:06}.part"));
        let open = || File::create(&part).map(|file| BufWriter::with_capacity(CHUNK, file));
        let body = match self.container {
            Container::Tar => open().map(|file| Body::Tar(Box::new(tar::Builder::new(file)))),
            Container::Zarr => open().map(|file| Body::Zarr(file, Vec::new())),
            Container::Folder => Ok(Body::Folder),
        };
        Ok(Shard {
            number,
            body: body.map_err(|e| Error::io(&part, e))?,
            part,
            lines: String::new(),
            written: 0,
        })
    }

    fn append(&self, shard: &mut Shard, entry: Entry) -> std::io::Result<()> {
        let length = entry.bytes.len() as u64;
        let mut offset = shard.written;
        match &mut shard.body {
            Body::Tar(tar) => {
                let name = self.name(entry.tile, self.encoding.extension());
                append_member(tar, &name, &entry.bytes)?;
                offset = tar.get_mut().stream_position()? - length.next_multiple_of(BLOCK);
                if !self.notes.offsets.is_empty() {
                    let name = self.name(entry.tile, "json");
                    append_member(tar, &name, self.notes.get(entry.tile))?;
                }
            }
            Body::Zarr(file, index) => {
                file.write_all(&entry.bytes)?;
                index.extend([shard.written, entry.bytes.len() as u64]);
                shard.written += entry.bytes.len() as u64;
            }
            Body::Folder => {}
        }
        let line = format!("{}\t{offset}\t{length}\n", entry.line);
        shard.lines.push_str(&line);
        Ok(())
    }

    fn finish(&self, shard: Shard) -> std::io::Result<()> {
        let path = self.path(shard.number);
        match shard.body {
            Body::Tar(tar) => {
                tar.into_inner()?
                    .into_inner()
                    .map_err(|e| e.into_error())?
                    .sync_all()?;
            }
            Body::Zarr(mut file, index) => {
                file.write_all(&shard_index(index, self.per_shard))?;
                file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
                fs::create_dir_all(path.parent().unwrap_or(&path))?;
            }
            Body::Folder => {}
        }
        if self.container != Container::Folder {
            fs::rename(&shard.part, &path)?;
        }
        let sidecar = self.sidecar(shard.number);
        fs::write(&shard.part, shard.lines)?;
        fs::rename(&shard.part, sidecar)
    }
}

/// A member that says nothing of when and by whom it was written.
fn append_member(
    tar: &mut tar::Builder<BufWriter<File>>,
    name: &str,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}

/// Offset and length of each inner chunk, all ones for those that are not there,
/// and their CRC-32C (zarr v3, sharding-indexed 1.0).
fn shard_index(mut index: Vec<u64>, chunks: usize) -> Vec<u8> {
    index.resize(2 * chunks, u64::MAX);
    let mut bytes: Vec<u8> = index.into_iter().flat_map(u64::to_le_bytes).collect();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}
