"""A tile per spot: against those who read slides, the paper's recipe, and the codecs' own rate.

Spots come to us shuffled, and to the peers in the order that suits them: row after row, each
thread a part of the picture. Every answer is compared, tile by tile.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import stfast
from benches import data
from benches import peers_tiles as peers
from benches.measure import Case, Contestant, threads
from benches.peers import copy_arrays

SIZE = 224
PITCH = 29
"""Pixels from one 8 µm bin to the next at 0.28 µm per pixel."""

Peer = Callable[..., peers.Pixels]
SLIDE_READERS: dict[str, Peer] = {
    "openslide": peers.openslide_tiles,
    "fastslide": peers.fastslide_tiles,
    "tiffslide": peers.tiffslide_tiles,
    "pyvips": peers.pyvips_tiles,
    "tifffile": peers.tifffile_tiles,
    "tifffile + zarr": peers.zarr_tiles,
}


class Work:
    """Spots on a picture, and arrays for our tiles and the peers', in memory before the race."""

    def __init__(
        self, path: Path, centers: NDArray[np.float64], workers: int, *, exact: bool = True
    ) -> None:
        self.path, self.workers, self.exact = path, workers, exact
        self.order = np.random.default_rng(0).permutation(len(centers))
        self.centers = centers[self.order]
        self.corners = np.floor(centers - SIZE / 2 + 0.5).astype(np.int64)
        shape = (len(centers), SIZE, SIZE, 3)
        self.ours = np.full(shape, 1, dtype=np.uint8)
        self.theirs = np.full(shape, 2, dtype=np.uint8)

    def us(self) -> Contestant:
        cut = partial(stfast.extract_tiles, self.path, workers=self.workers)
        return Contestant(
            name="stfast",
            role="ours",
            threads=self.workers,
            call=lambda: cut(self.centers, SIZE, out=self.ours),
            warm=lambda: cut(self.centers[:1], SIZE),
        )

    def peer(self, name: str) -> Contestant:
        return Contestant(
            name=name,
            needs=tuple(name.split(" + ")),
            threads=self.workers,
            equal=None if self.exact and name != "fastslide" else self.alike,
            call=partial(SLIDE_READERS[name], self.path, self.corners, self.theirs, self.workers),
        )

    def case(self, title: str, contestants: Sequence[Contestant]) -> Case:
        return Case(
            title=title,
            work=len(self.centers),
            unit="tiles",
            contestants=[self.us(), *contestants],
            equal=self.equal,
        )

    def equal(self, ours: peers.Pixels, theirs: peers.Pixels) -> None:
        for at, i in enumerate(self.order):
            np.testing.assert_array_equal(ours[at], theirs[i])

    def alike(self, ours: peers.Pixels, theirs: peers.Pixels) -> None:
        """Within 2 levels on average.

        FastSlide upsamples chroma by another rule (single levels differ by up to 26), and
        builds of OpenJPEG round in floating point as they like (by 1).
        """
        for at, i in enumerate(self.order):
            difference = np.abs(ours[at].astype(np.int16) - theirs[i]).mean()
            assert difference < 2, f"mean difference of {difference:.2f} levels"


def tiled(*, quick: bool) -> Case:
    """Every block is touched, so that decoding all of them at once is open to each peer."""
    side, per_side = (5120, 17) if quick else (20_480, 70)
    work = Work(data.slide(side), data.spots(side, per_side), threads())
    title = f"{per_side}² spots of {SIZE} px on a {side}² slide, JPEG blocks of 256²"
    raw = _raw_rates(peers.decode_jpegs, data.coded_blocks(work.path), (data.BLOCK, data.BLOCK))
    return work.case(title, [*map(work.peer, SLIDE_READERS), *raw])


def sparse(*, quick: bool) -> Case:
    """Fewer spots: at most half of the blocks are touched, and need be decoded."""
    side, per_side = (5120, 6) if quick else (20_480, 30)
    work = Work(data.slide(side), data.spots(side, per_side), threads())
    title = f"{per_side}² spots of {SIZE} px on a {side}² slide: half of the blocks"
    names = ["openslide", "fastslide", "pyvips", "tifffile", "tifffile + zarr"]
    return work.case(title, list(map(work.peer, names)))


def one_thread(*, quick: bool) -> Case:
    """The same on one thread, for what the schedule alone is worth."""
    side, per_side = (5120, 17) if quick else (10_240, 35)
    work = Work(data.slide(side), data.spots(side, per_side), 1)
    title = f"{per_side}² spots of {SIZE} px on a {side}² slide, one thread"
    shape = (data.BLOCK, data.BLOCK)
    raw = partial(peers.decode_jpegs, data.coded_blocks(work.path), shape, 1)
    limit = Contestant(name="libjpeg-turbo raw", role="limit", needs=("imagecodecs",), call=raw)
    return work.case(title, [*map(work.peer, ["openslide", "fastslide", "pyvips"]), limit])


def jp2k(*, quick: bool) -> Case:
    side, per_side = (1536, 5) if quick else (6144, 21)
    work = Work(data.jp2k_slide(side), data.spots(side, per_side), threads(), exact=False)
    title = f"{per_side}² spots of {SIZE} px on a {side}² slide, JPEG 2000 blocks of 256²"
    names = ["openslide", "fastslide", "tiffslide", "tifffile"]
    raw = _raw_rates(peers.decode_jp2k, data.coded_blocks(work.path))
    return work.case(title, [*map(work.peer, names), *raw])


def striped(*, quick: bool) -> Case:
    side, per_side = (2560, 8) if quick else (10_240, 35)
    work = Work(data.striped(side), data.spots(side, per_side), threads())
    title = f"{per_side}² spots of {SIZE} px on a {side}² TIFF in deflate strips of 16 rows"
    names = ["fastslide", "pyvips", "tifffile"]
    raw = _raw_rates(peers.inflate, data.coded_blocks(work.path), side * 16 * 3, name="libdeflate")
    return work.case(title, [*map(work.peer, names), *raw])


def _raw_rates(
    decode: Callable[..., None], blocks: list[bytes], *shape: object, name: str = "codec"
) -> list[Contestant]:
    """On all threads; and on one, whose time for its share is what many could reach."""
    n = threads()
    shares = {f"{n} threads": (blocks, n), f"1 thread × {n}": (blocks[::n], 1)}
    return [
        Contestant(
            name=f"{name} raw, {what}",
            role="limit",
            threads=workers,
            needs=("imagecodecs",),
            call=partial(decode, mine, *shape, workers),
        )
        for what, (mine, workers) in shares.items()
    ]


def bands(*, quick: bool) -> Case:
    """A plain JPEG with restart markers, as her2st's slides are: all threads decode it."""
    return _plain(quick=quick, markers=True)


def plain(*, quick: bool) -> Case:
    """A picture that is one JPEG stream leaves little work for a second thread."""
    return _plain(quick=quick, markers=False)


def _plain(*, quick: bool, markers: bool) -> Case:
    side, per_side = (2400, 8) if quick else (9600, 32)
    path = data.plain_jpeg(side, markers=markers)
    work = Work(path, data.spots(side, per_side), threads())
    arguments = (path, work.corners, work.theirs)
    stream = [path.read_bytes()]
    kind = "a restart marker a row" if markers else "no restart markers"
    contestants = [
        Contestant(name="Pillow", needs=("PIL",), call=partial(peers.pillow_tiles, *arguments)),
        Contestant(name="pyvips", needs=("pyvips",), call=partial(peers.pyvips_whole, *arguments)),
        Contestant(
            name="libjpeg-turbo raw, 1 thread",
            role="limit",
            needs=("imagecodecs",),
            call=partial(peers.decode_jpegs, stream, (side, side), 1),
        ),
    ]
    return work.case(f"{per_side}² spots on a plain JPEG of {side}², {kind}", contestants)


def dense(*, quick: bool) -> Case:
    """Visium HD's bins: every pixel is copied some sixty times."""
    side = 1024 if quick else 2560
    per_side = (side - SIZE) // PITCH
    at = SIZE / 2 + PITCH * np.arange(per_side)
    centers = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    work = Work(data.slide(side), centers, threads())
    n, blocks = threads(), data.coded_blocks(work.path)
    contestants = [
        work.peer("tifffile"),
        Contestant(
            name="memory: copy the tiles",
            role="limit",
            threads=n,
            call=partial(copy_arrays, [work.theirs], n),
        ),
        *_raw_rates(peers.decode_jpegs, blocks, (data.BLOCK, data.BLOCK))[:1],
    ]
    title = f"{per_side}² bins of {SIZE} px at {PITCH} px on a {side}² slide"
    return work.case(title, contestants)


def files(*, quick: bool) -> Case:
    """The paper's recipe: decode, crop, write a PNG a spot."""
    side, per_side = (2400, 8) if quick else (9600, 32)
    path, centers = data.plain_jpeg(side, markers=True), data.spots(side, per_side)
    corners = np.floor(centers - SIZE / 2 + 0.5).astype(np.int64)
    folder = Path(tempfile.mkdtemp(prefix="stfast-bench-"))
    theirs = folder / "theirs"
    theirs.mkdir()

    def ours(container: str, encoding: str) -> Path:
        shutil.rmtree(folder / container, ignore_errors=True)
        output = folder / container
        options = {"container": container, "encoding": encoding, "size": SIZE}
        stfast.write_tiles(path, centers, output, **options)  # type: ignore[arg-type]
        return output

    return Case(
        title=f"{per_side}² spots of a plain JPEG of {side}² to a PNG each",
        work=len(centers),
        unit="tiles",
        contestants=[
            Contestant(
                name="stfast", role="ours", threads=threads(), call=lambda: ours("folder", "png")
            ),
            Contestant(
                name="Pillow, as the paper",
                needs=("PIL",),
                call=partial(peers.paper_tiles, path, corners, SIZE, theirs),
            ),
            Contestant(
                name="stfast to JPEG in tar shards",
                role="limit",
                threads=threads(),
                call=lambda: ours("wds", "jpeg"),
            ),
        ],
        equal=_equal_files,
    )


def _equal_files(ours: Path, theirs: Path) -> None:
    for file in theirs.iterdir():
        with Image.open(file) as a, Image.open(ours / file.name) as b:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


CASES = {
    "tiled": tiled,
    "sparse": sparse,
    "one thread": one_thread,
    "jp2k": jp2k,
    "striped": striped,
    "bands": bands,
    "plain": plain,
    "dense": dense,
    "files": files,
}
