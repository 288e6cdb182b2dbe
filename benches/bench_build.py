"""A dataset of raw slides: beside the paper's own steps, and on a cluster of any size.

The paper's steps are its code's, slide after slide: Pillow opens the picture, crops and
saves a PNG a spot; scanpy chooses the genes and normalises them. Every pixel and every
value of the matrix is compared. ``python -m benches.bench_build`` prints how a build's time
divides into steps, and its memory: what the projection in ``docs/build.md`` is made of.
"""

import atexit
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import stfast
from benches import data, data_build, peers, peers_tiles
from benches.measure import Case, Contestant, threads
from stfast.dataset import _need, _stage

SIZE = 224
N_GENES = 128


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="stfast-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _build(found: dict[str, Path], **options: Any) -> Path:
    root = _folder() / "out"
    report = stfast.build(data_build.manifest(found), root, **options)
    assert not report.failed, report.failed
    return root


def paper(*, quick: bool) -> Case:
    """Slides of Visium to PNGs and the matrix of genes."""
    n, side, per_side = (2, 1200, 4) if quick else (4, 4800, 24)
    found = data_build.slides(n, side, per_side)
    ours = partial(_build, found, workers=threads(), seed=0)
    return Case(
        title=f"{n} slides of {per_side}² spots × {data_build.GENES} genes, pictures of {side}²",
        work=n * per_side**2,
        unit="tiles",
        contestants=[
            Contestant(
                name="stfast, PNG",
                role="ours",
                threads=threads(),
                call=partial(ours, tiles="png"),
            ),
            Contestant(
                name="Pillow + scanpy, as the paper",
                needs=("scanpy",),
                call=partial(_paper, found, side, per_side),
            ),
            Contestant(name="stfast, JPEG", role="limit", threads=threads(), call=ours),
            Contestant(name="stfast, JPEG, 1 thread", role="limit", call=partial(ours, workers=1)),
        ],
        equal=_equal_to_paper,
    )


def _paper(found: dict[str, Path], side: int, per_side: int) -> tuple[Path, Any]:
    folder = _folder()
    corners = np.floor(data.spots(side, per_side) - SIZE / 2 + 0.5).astype(np.int64)
    for seed, name in enumerate(found):
        (folder / name).mkdir()
        peers_tiles.paper_tiles(data_build.picture(side, seed), corners, SIZE, folder / name)
    return folder, peers.scanpy_rank_combined(found, N_GENES)


def _equal_to_paper(root: Path, theirs: tuple[Path, Any]) -> None:
    folder, matrix = theirs
    dataset = stfast.Dataset(root)
    index = dataset.index.with_row_index("row")
    shards = [path.read_bytes() for path in sorted((root / "tiles").iterdir())]
    start = 0
    for slide in sorted(index["slide"].unique()):
        rows = index.filter(slide=slide).sort(index.filter(slide=slide)["spot"].cast(int))
        np.testing.assert_allclose(
            dataset.hvg[rows["row"].to_numpy()],
            matrix.X[start : start + rows.height],
            rtol=1e-5,
        )
        start += rows.height
        for spot, shard, at, length in rows.select("spot", "shard", "offset", "length").rows():
            with (
                Image.open(folder / slide / f"{spot}.png") as a,
                Image.open(io.BytesIO(shards[shard][at : at + length])) as b,
            ):
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def cluster(*, quick: bool) -> Case:
    """The same slides by 1, 2 and 4 workers of Dask, of a thread each."""
    n, side, per_side = (2, 1200, 4) if quick else (8, 2400, 12)
    found = data_build.slides(min(n, 8), side, per_side)
    options = {"seed": 0, "shard_bytes": 1 << 22}
    return Case(
        title=f"{n} slides of {per_side}² spots, pictures of {side}², by workers of Dask",
        work=n * per_side**2,
        unit="tiles",
        contestants=[
            Contestant(
                name="stfast on this machine",
                role="ours",
                threads=threads(),
                call=partial(_build, found, workers=threads(), **options),
            ),
            *(
                Contestant(
                    name=f"dask, workers: {workers}",
                    needs=("distributed",),
                    threads=workers,
                    call=partial(_build_by, found, workers, options),
                    warm=partial(_scheduler, workers),
                )
                for workers in (1, 2, 4)
            ),
        ],
        equal=_equal_folders,
    )


def _build_by(found: dict[str, Path], workers: int, options: dict[str, Any]) -> Path:
    return _build(found, dask=_scheduler(workers), workers=1, **options)


@cache
def _scheduler(workers: int) -> str:
    """A scheduler with so many workers, each a process that has imported what it needs."""
    folder = _folder()
    file, options = folder / "scheduler.json", ["--no-dashboard", "--host", "127.0.0.1"]
    _start("scheduler", "--scheduler-file", str(file), "--port", "0", *options)
    while not file.exists() or not file.read_text():
        time.sleep(0.05)
    address: str = json.loads(file.read_text())["address"]
    for _ in range(workers):
        _start("worker", address, "--nthreads", "1", "--local-directory", str(folder), *options)
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers)
        client.run(__import__, "stfast.dataset._task")
    return address


def _start(*words: str) -> None:
    command = [sys.executable, "-m", "dask", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    atexit.register(process.kill)


def _equal_folders(ours: Path, theirs: Path) -> None:
    def content(root: Path) -> dict[str, bytes]:
        files = (path for name in ("tiles", "genes") for path in (root / name).rglob("*.*"))
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in files if p.is_file()}

    assert content(ours) == content(theirs)


CASES: dict[str, Callable[..., Case]] = {"paper": paper, "cluster": cluster}


def main() -> None:
    """Print what one thread takes of time for each step, and of memory beside its estimate."""
    for n, side, per_side in ((4, 4800, 24), (4, 4800, 4), (4, 1200, 4)):
        found = data_build.slides(n, side, per_side)
        root = _build(found, workers=1)
        lines = [json.loads(line) for line in (root / "run.jsonl").read_text().splitlines()]
        print(f"{n} slides of {per_side}² spots, pictures of {side}²")
        _print_steps([line for line in lines if "slide" in line], "stage")
        _print_steps([line for line in lines if "merge" in line], "merge")
        plan = _stage.Settings(8.0, SIZE, None, N_GENES, "jpeg", 95)
        row = {"path": str(found["s0"])}
        print(f"  estimate {_need.of_slide(row, plan).memory / 1e6:,.0f} MB a slide")
        size = sum(f.stat().st_size for f in (root / "tiles").iterdir()) / n / per_side**2
        print(f"  {size / 1e3:,.1f} kB a tile in shards")


def _print_steps(lines: list[dict[str, Any]], what: str) -> None:
    total = sum(line["seconds"] for line in lines)
    cpu, peak = sum(line["cpu_seconds"] for line in lines), max(x["peak_bytes"] for x in lines)
    shares = {
        step: sum(line["steps"][step] for line in lines) / total for step in lines[0]["steps"]
    }
    words = ", ".join(f"{step} {share:.0%}" for step, share in shares.items())
    print(f"  {what}: {total:.2f} s, {cpu:.2f} s of CPU, {peak / 1e6:,.0f} MB; {words}")


if __name__ == "__main__":
    main()
