"""Which spots to cut tiles around: from a slide's folder, or from a table."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast import _check, _spatial
from stfast._core import FormatError
from stfast.images import SlideImage, open_image
from stfast.readers import read


@dataclass(frozen=True)
class Spots:
    """Spots of a picture: names, centres (x, y) in px, diameter in px, µm per px."""

    image: SlideImage
    names: list[str]
    centers: NDArray[np.float64]
    diameter: float | None
    mpp: float | None

    def inside(self) -> NDArray[np.bool_]:
        """Which spots lie on the picture."""
        return _spatial.in_picture(self.centers, self.image.shape)

    def span(self, span_um: float | None, mpp: float | None) -> float | None:
        """Side of a window in pixels: as asked in µm, else the spot's diameter."""
        if span_um is None:
            return self.diameter
        mpp = mpp or self.mpp
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
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{table}: expected a CSV table, got {error}") from error
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
    )
