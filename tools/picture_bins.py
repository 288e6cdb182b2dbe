"""Draws docs/bins.png: one place of a made slide at 2, 8 and 16 µm, beside its picture.

Run `python tools/picture_bins.py` after a change of what it shows.
"""

import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from anndata import AnnData
from matplotlib.collections import PolyCollection

import stfast

mpl.use("Agg")
SIDE_UM, VIEW_UM = 700, 300
MARKERS = ("EPCAM", "KRT8", "KRT18", "KRT19", "CDH1")


def main() -> None:
    import matplotlib.pyplot as plt

    out = Path(__file__).parent.parent / "docs/bins.png"
    with tempfile.TemporaryDirectory() as folder:
        slide = stfast.synthesize_visium_hd(
            Path(folder) / "slide", side_um=SIDE_UM, n_genes=500, mpp=0.5, seed=3
        )
        squares = stfast.read_visium_hd(slide, 2, raw=True)
        view = _view(squares)
        figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
        _show_picture(axes[0], squares, view)
        for axis, size in zip(axes[1:], (2, 8, 16), strict=True):
            bins = squares if size == 2 else stfast.aggregate_bins(squares, size)
            _show_bins(axis, bins, view)
            axis.set_title(f"{size} µm")
        figure.savefig(out, dpi=110)
    print(out)


def _view(adata: AnnData) -> tuple[float, float, float, float]:
    """Left, right, bottom, top in pixels: where glands meet what is around them."""
    x, y = np.asarray(adata.obsm["spatial"]).mean(axis=0) - [60, 230]
    half = VIEW_UM / 0.5 / 2
    return float(x - half), float(x + half), float(y + half), float(y - half)


def _show_picture(axis: Any, adata: AnnData, view: tuple[float, ...]) -> None:
    ((_, library),) = adata.uns["spatial"].items()
    pixels, scale = library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]
    height, width = (n / scale for n in pixels.shape[:2])
    axis.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear")
    _frame(axis, view)
    axis.set_title("picture")


def _show_bins(axis: Any, adata: AnnData, view: tuple[float, ...]) -> None:
    """Squares along their grid, as bright as they have molecules of epithelial genes."""
    known = [gene for gene in MARKERS if gene in adata.var_names]
    value = np.asarray(adata[:, known].X.sum(axis=1)).ravel().astype(float)
    xy = np.asarray(adata.obsm["spatial"])
    at = adata.obs[["array_col", "array_row"]].to_numpy(float)
    step = np.linalg.lstsq(at - at.mean(axis=0), xy - xy.mean(axis=0), rcond=None)[0]
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) @ step
    squares = PolyCollection(xy[:, None] + corners, array=value, cmap="magma", edgecolor="face")
    squares.set_linewidth(0.2)
    squares.set_clim(0, np.quantile(value, 0.995))
    axis.add_collection(squares)
    axis.set_facecolor("black")
    _frame(axis, view)


def _frame(axis: Any, view: tuple[float, ...]) -> None:
    left, right, bottom, top = view
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")


if __name__ == "__main__":
    main()
