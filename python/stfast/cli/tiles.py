"""`stfast tile`: a tile for each spot, or all over the tissue, into files."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

import stfast
from stfast.cli._app import Json, Size, SpanUm, Workers, app
from stfast.cli._show import Rows, show, tile_bar

if TYPE_CHECKING:
    from stfast._spots import Spots
    from stfast.tiles import TileReport
    from stfast.tiles._job import Job

Source = Annotated[Path, typer.Argument(help="An image, or the folder of a slide.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder, .zarr or .npy to write.")]
SpotsFile = Annotated[
    Path | None,
    typer.Option(
        help="Table of x, y (or xaxis, yaxis, r) in pixels, slide's folder, h5ad or zarr."
    ),
]
Grid = Annotated[
    bool, typer.Option("--grid", help="Tile the tissue in a grid instead of at spots.")
]
Step = Annotated[float | None, typer.Option(help="Pixels from tile to tile of the grid.")]
MinTissue = Annotated[float, typer.Option(help="Minimum share of tissue in a tile of the grid.")]
Span = Annotated[float | None, typer.Option(help="Side of a tile's window, in pixels.")]
Mpp = Annotated[float | None, typer.Option(help="µm per pixel of the image; overrides the file's.")]
ModeWord = Annotated[
    str, typer.Option(help="Window's rounding: center, or pil-crop as in the paper.")
]
Resample = Annotated[str, typer.Option(help="Resize filter: box, bilinear, bicubic or lanczos.")]
BorderWord = Annotated[str, typer.Option(help="Pixels outside the picture: fill, edge or reflect.")]
Fill = Annotated[int | None, typer.Option(help="Grey level outside the picture, 0 to 255.")]
OnErrorWord = Annotated[str, typer.Option(help="What a damaged block does: raise or fill.")]
Format = Annotated[
    str | None, typer.Option("--format", help="Output format: wds, zarr, folder or npy.")
]
EncodingWord = Annotated[
    str | None, typer.Option(help="Encoding of the tiles: jpeg, png, raw or zstd.")
]
Quality = Annotated[int, typer.Option(help="JPEG quality, from 1 to 100.")]
ShardSize = Annotated[int, typer.Option(help="Number of tiles in a shard.")]
Channels = Annotated[str | None, typer.Option(help="Pages of a fluorescence image to show: 0,2,1.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]


@app.command()
def tile(
    context: typer.Context,
    source: Source,
    output: Output,
    spots: SpotsFile = None,
    grid: Grid = False,
    step: Step = None,
    min_tissue: MinTissue = 0.5,
    size: Size = 224,
    span: Span = None,
    span_um: SpanUm = None,
    mpp: Mpp = None,
    mode: ModeWord = "center",
    resample: Resample = "bicubic",
    border: BorderWord = "fill",
    fill: Fill = None,
    on_error: OnErrorWord = "raise",
    container: Format = None,
    encoding: EncodingWord = None,
    quality: Quality = 95,
    shard_size: ShardSize = 1024,
    channels: Channels = None,
    resume: Resume = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Cut a tile around each spot, or all over the tissue.

    By default the window is the square of side 2r around a spot of radius r; --span or
    --span-um set another side. --size 0 keeps the window's pixels without resizing.
    """
    from stfast.tiles._write import run

    job = _job(SimpleNamespace(**context.params))
    estimate = job.estimate_bytes()
    _say_estimate(job, estimate)
    start = time.perf_counter()
    with tile_bar(len(job.windows), estimate) as advance:
        report = run(job, resume=resume, progress=advance)
    found = _found(job, report, estimate, time.perf_counter() - start)
    show(found, as_json, ("", ""), _rows(found))


def _job(said: SimpleNamespace) -> "Job":
    """What the options say is to be done."""
    from stfast.tiles._job import prepare
    from stfast.tiles._windows import span_in_pixels, style

    chosen = _spots(said)
    span = span_in_pixels(chosen.image, said.span, said.span_um)
    return prepare(
        chosen.image,
        chosen.centers,
        said.output,
        names=chosen.names,
        container=said.container,
        encoding=said.encoding,
        quality=said.quality,
        shard_size=said.shard_size,
        size=None if said.size == 0 else said.size,
        span=chosen.diameter if span is None else span,
        mode=said.mode,
        look=style(said.fill, said.border, said.resample, said.on_error, said.mode),
        workers=said.workers,
    )


def _spots(said: SimpleNamespace) -> "Spots":
    from dataclasses import replace

    from stfast._spots import find_spots, grid_spots
    from stfast.tiles._windows import image_of, span_in_pixels

    image = None
    if not said.source.is_dir():
        opened = stfast.open_image(said.source, channels=_numbers(said.channels))
        image = image_of(opened, said.mpp)
    if said.grid:
        if image is None or said.spots is not None:
            raise ValueError(f"{said.source}: expected --grid with an image and no --spots")
        span = span_in_pixels(image, said.span, said.span_um) or said.size
        options = {"step": said.step, "min_tissue": said.min_tissue, "workers": said.workers}
        return grid_spots(image, span, **options)
    if image is not None and said.spots is None:
        raise ValueError(f"{said.source}: expected --spots or --grid with an image, got neither")
    chosen = find_spots(image, said.source if said.spots is None else said.spots)
    return replace(chosen, image=image_of(chosen.image, said.mpp))


def _numbers(channels: str | None) -> tuple[int, ...] | None:
    if channels is None:
        return None
    try:
        return tuple(map(int, channels.split(",")))
    except ValueError as error:
        raise ValueError(f"channels: expected numbers like 0,2,1, got {channels!r}") from error


def _say_estimate(job: "Job", estimate: int) -> None:
    """The size on disk, before anything is written."""
    if sys.stderr.isatty():
        about = "" if job.encoding == "raw" else "about "
        words = f"{len(job.windows):,} tiles, {about}{estimate / 1e6:,.0f} MB on disk"
        print(f"{words} in {job.output} ({job.container}, {job.encoding})", file=sys.stderr)


def _found(job: "Job", report: "TileReport", estimate: int, seconds: float) -> dict[str, Any]:
    """The line of truth: what was done, how much of it was needed, how fast it could be."""
    raw = (job.codec_rate() or None) if report.written else None
    rate = report.decoded / seconds
    return {
        "output": str(job.output),
        "tiles": len(job.windows),
        "written": report.written,
        "outside": report.outside,
        "partial": report.partial,
        "bad": len(report.bad),
        "size": job.windows.size,
        "span_px": float(job.windows.width[0] * job.windows.level.downsample[0])
        if len(job.windows)
        else None,
        "mpp": job.image.mpp,
        "mpp_source": job.image.mpp_source,
        "level": job.image.levels.index(job.windows.level),
        "access": job.windows.level.access[0],
        "blocks": report.blocks,
        "decoded_px": report.decoded,
        "amplification": round(report.amplification, 4),
        "codec_px_per_s": None if raw is None else round(raw),
        "share_of_codec": None if raw is None else round(rate / raw, 3),
        "seconds": round(seconds, 3),
        "tiles_per_s": round(report.written / seconds, 1),
        "estimated_bytes": estimate,
        "bytes": _bytes_of(job.output),
    }


def _bytes_of(output: Path) -> int:
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(file.stat().st_size for file in files if file.is_file())


def _rows(found: dict[str, Any]) -> Rows:
    """The same for people, a line each."""
    share = found["share_of_codec"]
    codec = "" if share is None else f", {share:.0%} of the codec's own rate"
    odd = [f"{found[key]:,} {word}" for key, word in _ODD.items() if found[key]]
    mpp = "" if found["mpp"] is None else f" ({found['mpp']:.4g} µm per px, {found['mpp_source']})"
    tiles = f"{found['tiles']:,}, {found['tiles_per_s']:,.0f} a second"
    decoded = f"{found['decoded_px'] / 1e6:,.1f} Mpx by {found['access']}"
    times = f"{found['amplification']:.2f}× those touched"
    return [
        ("output", f"{found['output']}, {found['bytes'] / 1e6:,.1f} MB"),
        ("tiles", ", ".join([tiles, *odd])),
        ("window", f"{found['span_px'] or 0:g} px of level {found['level']}{mpp}"),
        ("decoded", f"{decoded}, {times}{codec}"),
    ]


_ODD = {
    "outside": "wholly outside",
    "partial": "partly outside",
    "bad": "on damaged blocks",
}
