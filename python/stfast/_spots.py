"""Which spots to cut tiles around, from a folder or a table, and the file of their tiles."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast import _check, _spatial
from stfast._core import FormatError
from stfast._output import whole
from stfast.images import SlideImage, open_image
from stfast.readers import read
from stfast.tiles import extract_tiles, tile_side


@dataclass(frozen=True)
class Spots:
    """Spots of a picture: names, centres (x, y) in px, diameter in px, µm per px."""

    image: SlideImage
    names: list[str]
    centers: NDArray[np.float64]
    diameter: float | None
    mpp: float | None
    table: Path | None = None

    def inside(self) -> NDArray[np.bool_]:
        """Which spots lie on the picture."""
        return _spatial.in_picture(self.centers, self.image.shape)

    def span(self, span_um: float | None, mpp: float | None) -> float | None:
        """Side of a window in pixels: as asked in µm, else the spot's diameter."""
        if span_um is None:
            return self.diameter
        mpp = self.mpp if mpp is None else mpp
        if mpp is None:
            raise ValueError(
                f"{self.image.path}: expected µm per pixel to turn --span-um into pixels, "
                f"got none from the file; give --mpp"
            )
        return _check.positive(span_um, "span_um", "µm") / _check.positive(mpp, "mpp", "µm")


def from_folder(folder: str | os.PathLike[str]) -> Spots:
    """The spots in tissue of a slide that :func:`stfast.read` reads."""
    adata = read(folder)
    adata = adata[adata.obs["in_tissue"] == 1]
    factors = _spatial.library(adata)[1]["scalefactors"]
    return Spots(
        image=open_image(_spatial.image_path(adata)),
        names=list(adata.obs_names),
        centers=_spatial.centers(adata),
        diameter=_spatial.spot_span(adata),
        mpp=factors.get("microns_per_pixel"),
    )


def from_table(image: str | os.PathLike[str], table: Path | None) -> Spots:
    """The rows of a CSV: ``x, y``, or ``yaxis, xaxis, r`` as STimage-1K4M writes them."""
    opened = open_image(image)
    if table is None:
        raise ValueError(f"{image}: expected --spots with an image, got none")
    try:
        rows = pl.read_csv(table)
        rows = rows.with_columns(pl.col("^(x|y|xaxis|yaxis|r)$").cast(pl.Float64))
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{table}: expected a CSV table of numbers, got {error}") from error
    pairs = [pair for pair in (("x", "y"), ("xaxis", "yaxis")) if set(pair) <= set(rows.columns)]
    if not pairs:
        raise FormatError(f"{table}: expected columns x, y or xaxis, yaxis, got {rows.columns}")
    named = rows.columns[0] not in ("x", "y", "xaxis", "yaxis", "r")
    names = rows.to_series(0) if named else pl.Series(range(len(rows)))
    radius = rows["r"].to_numpy().max() if "r" in rows.columns else None
    return Spots(
        image=opened,
        names=names.cast(pl.String).to_list(),
        centers=_check.points(rows.select(pairs[0]).to_numpy(), str(table)),
        diameter=None if radius is None else 2 * float(radius),
        mpp=opened.mpp,
        table=table,
    )


def write_tiles(
    spots: Spots,
    output: Path,
    *,
    size: int,
    span: float | None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Write the tiles of the spots on the picture to ``.npy``, and the spots to ``.csv``.

    Returns what was written, for the command to show.
    """
    if output.suffix != ".npy":
        raise ValueError(f"output: expected a name ending in .npy, got {output}")
    if spots.table is not None and output.with_suffix(".csv").resolve() == spots.table.resolve():
        raise ValueError(f"output: expected a name other than that of the spots, got {output}")
    size = tile_side(size)
    inside = spots.inside()
    centers = spots.centers[inside]
    shape = (len(centers), size, size, 3)
    with whole(output) as partial, whole(output.with_suffix(".csv")) as table:
        tiles = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        extract_tiles(
            spots.image, centers, size, span=span, out=tiles, workers=workers, progress=progress
        )
        tiles.flush()
        columns = {"spot": np.array(spots.names)[inside], "x": centers[:, 0], "y": centers[:, 1]}
        pl.DataFrame(columns).write_csv(table)
    return {
        "output": str(output),
        "tiles": len(centers),
        "off_picture": int((~inside).sum()),
        "size": size,
        "span_px": size if span is None else span,
    }
