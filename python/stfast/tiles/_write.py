"""Tiles into files: tar shards, a zarr array, a folder of pictures, or one ``.npy``.

Tiles are written while the picture is decoded, in the order in which their last
blocks lie in it, so that memory does not grow with them; ``spots.parquet`` beside
them says which is which. All of it is made in ``OUTPUT.part``, which becomes
``OUTPUT`` when it is whole; what a killed run left there can be resumed, shard by
shard, and ends in the same bytes.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from stfast import _core
from stfast._native import Output, no_strings, strings
from stfast._output import whole
from stfast.images import SlideImage
from stfast.tiles._job import (
    FORMAT_VERSION,
    Container,
    Encoding,
    Job,
    prepare,
    settings_of,
)
from stfast.tiles._report import TileReport, report_of
from stfast.tiles._windows import (
    Border,
    Filter,
    Mode,
    OnError,
    image_of,
    span_in_pixels,
    style,
)

_ZSTD_LEVEL = 3
_SETTINGS, _SPOTS = "tiles.json", "spots.parquet"


def write_tiles(
    image: str | os.PathLike[str] | SlideImage,
    centers: ArrayLike,
    output: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    container: Container | None = None,
    encoding: Encoding | None = None,
    quality: int = 95,
    shard_size: int = 1024,
    resume: bool = False,
    size: int | None = 224,
    span: float | None = None,
    span_um: float | None = None,
    mpp: float | None = None,
    mode: Mode = "center",
    resample: Filter = "bicubic",
    border: Border = "fill",
    fill: int | None = None,
    on_error: OnError = "raise",
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> TileReport:
    """Cut a tile around each centre, and write them to files as they are cut.

    Memory holds the blocks along the front of the decoding and a few encoded
    tiles, whatever the number of spots. The bytes written do not depend on
    ``workers``, nor on interruptions.

    Parameters
    ----------
    image, centers
        As in :func:`extract_tiles`.
    output
        Folder to make (``.npy``: file). Nothing may be there yet.
    names
        Of the spots, unique; ``None``: their numbers. Characters that file names
        and tar members cannot hold are percent-encoded there.
    container
        ``"wds"``: tar shards for WebDataset, a picture and a ``.json`` a tile.
        ``"zarr"``: a zarr v3 array ``tiles`` (n, size, size, 3) in shards.
        ``"folder"``: a file a tile, named by spot. ``"npy"``: one array of the
        tiles in the order of the spots, and a ``.csv`` of these beside it.
        ``None``: told from the ending ``.npy`` or ``.zarr``.
    encoding
        ``"jpeg"`` (without chroma subsampling), ``"png"``, ``"raw"`` (``.npy``
        members in tar and folder), ``"zstd"`` (zarr only). ``None``: jpeg for wds,
        png for folder, raw for zarr.
    quality
        Of JPEG, 1 to 100.
    shard_size
        Tiles in a shard, and between two points that a run can be resumed from.
    resume
        Continue what an interrupted run of the same settings left in
        ``OUTPUT.part``; an output that is whole is left as it is.
    size, span, span_um, mpp, mode, resample, border, fill, on_error
        As in :func:`extract_tiles`; ``size=None`` needs tar or folder where
        windows differ in size.
    workers, progress
        As there.

    Returns
    -------
    TileReport
        What was cut and written.

    Raises
    ------
    FileExistsError
        The output is there, or the remains of an interrupted run and ``resume``
        was not given.
    FormatError
        A block is damaged; names file and block.
    OSError
        The disk is full or not writeable; what is whole by then can be resumed.
    ValueError
        Names are not unique, an argument does not fit, or the run to be resumed
        had other settings.
    """
    job = prepare(
        image,
        centers,
        output,
        names=names,
        container=container,
        encoding=encoding,
        quality=quality,
        shard_size=shard_size,
        size=size,
        span=span_in_pixels(image_of(image, mpp), span, span_um),
        mode=mode,
        look=style(fill, border, resample, on_error, mode),
        mpp=mpp,
        workers=workers,
    )
    return run(job, resume=resume, progress=progress)


def run(
    job: Job, *, resume: bool = False, progress: Callable[[int], object] | None = None
) -> TileReport:
    """Write what a job says; see :func:`write_tiles`."""
    if job.container == "npy":
        return _write_array(job, resume=resume, progress=progress)
    return _write_folder(job, resume=resume, progress=progress)


def _write_array(job: Job, *, resume: bool, progress: Callable[[int], object] | None) -> TileReport:
    """One array, filled through a memory map; there is nothing in it to resume."""
    if resume:
        raise ValueError("resume: expected wds, zarr or folder, got npy, which is one piece")
    output = job.output
    table = output.with_suffix(".csv")
    for path in (output, table):
        if path.exists():
            raise FileExistsError(17, "expected nothing there yet", str(path))
    shape = (len(job.windows), *job.windows.tile_shape(), 3)
    with whole(output) as partial, whole(table) as partial_table:
        tiles = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        places = job.windows.places()
        told = _core.extract_tiles(places, job.look, tiles, job.workers, progress=progress)
        tiles.flush()
        del tiles  # Windows renames no file that is mapped
        report = report_of(told, output=output, written=len(job.windows))
        _spots(job, report).write_csv(partial_table)
    return report


def _spots(job: Job, report: TileReport) -> pl.DataFrame:
    x, y = job.centers.T
    faults = [report.bad.get(i) for i in range(len(x))] if report.bad else None
    table = pl.DataFrame({"spot": job.names, "x": x, "y": y, "valid": report.valid})
    return table if faults is None else table.with_columns(fault=pl.Series(faults, dtype=pl.String))


def _write_folder(
    job: Job, *, resume: bool, progress: Callable[[int], object] | None
) -> TileReport:
    output = job.output
    part = output.with_name(output.name + ".part")
    settings = settings_of(job)
    if output.exists():
        if resume and output.is_dir():
            _check_same(output, settings)
            return _told_by(output, job)
        raise FileExistsError(17, "expected nothing there yet", str(output))
    _begin(part, settings, resume=resume)
    folder = _make_array(part, job) if job.container == "zarr" else part
    places = job.windows.places()
    order = _core.tile_order(places, job.workers)
    shards = -(-len(order) // job.per_shard)
    sidecars = [folder / f".shard-{number:06}.tsv" for number in range(shards)]
    done = np.array([sidecar.exists() for sidecar in sidecars], dtype=bool)
    target = _target(job, folder, order, done)
    told = _core.write_tiles(places, job.look, target, job.workers, progress=progress)
    table = _merge(job, order, sidecars)
    with whole(part / _SPOTS) as partial:
        table.write_parquet(partial)
    for leftover in folder.glob(".shard-*"):
        leftover.unlink()
    part.rename(output)
    report = _told_by(output, job)
    numbers = report_of(
        told, written=len(order) - int(np.repeat(done, job.per_shard)[: len(order)].sum())
    )
    return replace(numbers, valid=report.valid, bad=report.bad, output=output)


def _target(job: Job, folder: Path, order: NDArray[np.uint32], done: NDArray[np.bool_]) -> Output:
    container = {"wds": "tar"}.get(job.container, job.container)
    npy = job.encoding == "raw" and job.container != "zarr"
    notes = no_strings()
    if job.container == "wds":
        x, y = job.centers.T
        record = pl.DataFrame({"spot": job.names, "x": x, "y": y})
        notes = strings(record.select(pl.struct(pl.all()).struct.json_encode()).to_series())
    return Output(
        container=container,
        encoding="npy" if npy else job.encoding,
        quality=_ZSTD_LEVEL if job.encoding == "zstd" else job.quality,
        folder=folder,
        names=strings(job.files),
        notes=notes,
        order=order,
        per_shard=job.per_shard,
        done=done,
    )


def _begin(part: Path, settings: dict[str, Any], *, resume: bool) -> None:
    if part.exists():
        if not resume:
            message = "expected no remains of an interrupted run; resume it, or remove it"
            raise FileExistsError(17, message, str(part))
        _check_same(part, settings)
        return
    if not part.absolute().parent.is_dir():
        raise FileNotFoundError(2, "No such directory", str(part.absolute().parent))
    part.mkdir()
    with whole(part / _SETTINGS) as partial:
        partial.write_bytes(f"{json.dumps(settings, indent=1)}\n".encode())


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / _SETTINGS
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the settings of a run to resume, got {error}"
        ) from error
    settings = json.loads(json.dumps(settings))
    other = [key for key in {**settings, **found} if settings.get(key) != found.get(key)]
    if other:
        key = other[0]
        raise ValueError(
            f"{path}: expected the same settings, got {key} {found.get(key)!r} "
            f"there and {settings.get(key)!r} now"
        )


def _make_array(part: Path, job: Job) -> Path:
    """A zarr group with the array ``tiles``; the folder of its shards."""
    import zarr
    from zarr.codecs import ZstdCodec

    height, width = job.windows.tile_shape()
    folder = part / "tiles"
    if not (folder / "zarr.json").exists():
        group = zarr.open_group(part, mode="a", zarr_format=3)
        group.attrs["stfast"] = {"format_version": FORMAT_VERSION, "spots": _SPOTS}
        zstd = [ZstdCodec(level=_ZSTD_LEVEL)]
        group.create_array(
            "tiles",
            shape=(len(job.windows), height, width, 3),
            chunks=(1, height, width, 3),
            shards=(job.per_shard, height, width, 3),
            dtype="uint8",
            compressors=zstd if job.encoding == "zstd" else None,
            dimension_names=["spot", "y", "x", "channel"],
            overwrite=True,
        )
    return folder


def _merge(job: Job, order: NDArray[np.uint32], sidecars: Sequence[Path]) -> pl.DataFrame:
    """The spots in the order of their tiles, from what each shard says of its own."""
    places = {"offset": pl.UInt64, "length": pl.UInt32}
    schema = {"valid": pl.Float32, "fault": pl.String, **places}
    parts = [
        pl.read_csv(path, separator="\t", has_header=False, schema=schema, quote_char=None)
        for path in sidecars
    ]
    told = pl.concat(parts) if parts else pl.DataFrame(schema=schema)
    number = np.arange(len(order))
    x, y = job.centers[order].T
    table = pl.DataFrame(
        {
            "spot": job.names.gather(order),
            "x": x,
            "y": y,
            "valid": told["valid"],
            "fault": told["fault"],
            "row": order,
            "shard": (number // job.per_shard).astype(np.uint32),
        }
    )
    return table.hstack(told.select(*places)) if job.container == "wds" else table


def _told_by(output: Path, job: Job) -> TileReport:
    """What the table of an output says; rows are the spots as they were given."""
    table = pl.read_parquet(output / _SPOTS).sort("row")
    bad = table.filter(pl.col("fault").is_not_null() & (pl.col("fault") != ""))
    faults = dict(zip(bad["row"].to_list(), bad["fault"].to_list(), strict=True))
    return TileReport(table["valid"].to_numpy(), faults, 0, 0, 0, output=output)
