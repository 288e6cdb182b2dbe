"""The build's inputs: slides as GEO has them, a plain JPEG and counts of some 18 000 genes."""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from anndata import AnnData
from PIL import Image

from benches import data

GENES, UMI = 18_000, 5_000.0
"""Of a spot of Visium of fresh tissue."""


def slides(n: int, side: int, per_side: int) -> dict[str, Path]:
    """Slides of ``per_side``² spots of 224 px on pictures of ``side``² pixels."""
    return {f"s{seed}": _slide(side, per_side, seed) for seed in range(n)}


def manifest(found: dict[str, Path]) -> pl.DataFrame:
    """The table of slides that a build takes."""
    return pl.DataFrame({"slide": list(found), "path": list(map(str, found.values()))})


def _slide(side: int, per_side: int, seed: int) -> Path:
    return data.cached(
        f"visium-{side}-{per_side}-{seed}.h5ad", partial(_write, side, per_side, seed)
    )


def _write(side: int, per_side: int, seed: int, path: Path) -> None:
    xy = data.spots(side, per_side)
    matrix = data.filled(data.counts(len(xy), GENES, UMI, seed=seed))
    adata = AnnData(matrix.astype(np.float32), obsm={"spatial": xy})
    adata.uns["spatial"] = {
        "bench": {
            "images": {},
            "scalefactors": {"spot_diameter_fullres": 224.0},
            "metadata": {"source_image_path": str(picture(side, seed))},
        }
    }
    adata.write_h5ad(path)


def picture(side: int, seed: int) -> Path:
    """A plain JPEG for each slide; they are mirrored, for no two slides have one picture."""

    def make(path: Path) -> None:
        turn = [None, *Image.Transpose][seed]
        with Image.open(data.plain_jpeg(side, markers=False)) as image:
            turned = image if turn is None else image.transpose(turn)
            turned.save(path, "jpeg", quality=90)

    return data.cached(f"picture-{side}-of-{seed}.jpg", make)
