"""The main job from end to end: a raw slide in, training batches out.

``stfast demo`` runs it on a slide it makes itself the first time, or on the
user's own; each step is timed, and a picture shows what came out.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from stfast import _spatial
from stfast._output import whole
from stfast.bins import aggregate_bins
from stfast.hvg import highly_variable_genes
from stfast.images import open_image, thumbnail
from stfast.readers import read
from stfast.readers.visium_hd import (
    is_visium_hd,
    mark_tissue,
    read_visium_hd,
    sizes_on_disk,
)
from stfast.synthetic import synthesize_visium_hd

Report = Callable[["Step"], object]


@dataclass(frozen=True)
class Step:
    """What a step did: how much, and how long it took."""

    name: str
    did: str
    seconds: float
    amount: float
    unit: str

    @property
    def throughput(self) -> str:
        """Amount per second, in words."""
        rate = self.amount / max(self.seconds, 1e-9)
        for scale, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
            if rate >= scale:
                return f"{rate / scale:.1f}{prefix}{self.unit}/s"
        return f"{rate:.1f} {self.unit}/s"


@dataclass
class Run:
    """Steps as they end, and what the last one left."""

    report: Report = lambda step: None
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, unit: str) -> Iterator[dict[str, Any]]:
        """Time a step; the block says what it ``did`` and the ``amount``."""
        note: dict[str, Any] = {}
        start = time.perf_counter()
        yield note
        seconds = time.perf_counter() - start
        step = Step(name, note["did"], seconds, note["amount"], unit)
        self.steps.append(step)
        self.report(step)


def run_demo(
    folder: str | os.PathLike[str] = "stfast-demo",
    *,
    slide: str | os.PathLike[str] | None = None,
    side_um: float = 1000.0,
    bin_size: int = 8,
    size: int = 224,
    span_um: float | None = None,
    batch_size: int = 256,
    n_top_genes: int = 128,
    gene: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    report: Report = lambda step: None,
) -> tuple[list[Step], Path]:
    """Run the main job and draw what came out.

    Parameters
    ----------
    folder
        Where the made slide and the picture go.
    slide
        The user's own slide; ``None``: one that is made in ``folder`` the first time.
    side_um
        Side of the made slide in µm.
    bin_size
        µm of a bin (Visium HD).
    size
        Pixels of a tile's side.
    span_um
        µm of a window's side; ``None``: the paper's, the spot's diameter.
    batch_size, n_top_genes, seed, workers
        As in :class:`stfast.TileLoader` and :func:`stfast.highly_variable_genes`.
    gene
        Gene to colour the picture by; ``None``: the most variable one.
    report
        Called with each step as it ends.

    Returns
    -------
    steps, picture
        The steps with their times, and the path of the picture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(report)
    if slide is None:
        slide = _make_slide(run, folder, side_um, seed)
    adata = _read(run, Path(slide), bin_size, workers)
    adata = _usable(run, adata)
    _choose_genes(run, adata, n_top_genes, workers)
    span = None if span_um is None else span_um / _spatial.mpp(adata)
    options = {"size": size, "span": span, "batch_size": batch_size, "seed": seed}
    tiles = _load(run, adata, **options, workers=workers)
    picture = folder / f"{_spatial.library(adata)[0]}.png"
    with run.step("draw", "spots") as note:
        draw(adata, tiles, picture, gene=gene)
        note.update(did=picture.name, amount=adata.n_obs)
    return run.steps, picture


def _make_slide(run: Run, folder: Path, side_um: float, seed: int) -> Path:
    slide = folder / f"visium-hd-{side_um:g}um-seed{seed}"
    squares = round(side_um / 2) ** 2
    if not slide.exists():
        with run.step("make", "squares") as note:
            synthesize_visium_hd(slide, side_um=side_um, seed=seed, progress=True)
            note.update(did=f"a Visium HD slide of {squares:,} squares", amount=squares)
    return slide


def _read(run: Run, slide: Path, bin_size: int, workers: int | None) -> AnnData:
    """The slide in bins: built here from the squares where its maker did not."""
    on_disk = sizes_on_disk(slide) if is_visium_hd(slide) else []
    aggregate = bool(on_disk) and bin_size not in on_disk
    with run.step("read", "counts") as note:
        if aggregate:
            adata = read_visium_hd(slide, min(on_disk), raw=True, workers=workers)
        elif on_disk:
            adata = read_visium_hd(slide, bin_size, workers=workers)
        else:
            adata = read(slide, workers=workers)
        did = f"{adata.n_obs:,} {'squares' if aggregate else 'spots'} × {adata.n_vars:,} genes"
        note.update(did=did, amount=adata.X.nnz)
    if not aggregate:
        return adata
    with run.step("aggregate", "counts") as note:
        binned = aggregate_bins(adata, bin_size, workers=workers)
        mark_tissue(binned, slide)
        note.update(did=f"{binned.n_obs:,} bins of {bin_size} µm", amount=adata.X.nnz)
    shape = open_image(_spatial.image_path(binned)).shape
    binned.obs["in_picture"] = _spatial.in_picture(_spatial.centers(binned), shape)
    return binned


def _usable(run: Run, adata: AnnData) -> AnnData:
    """Spots in tissue and on the picture; what is left out is said."""
    _spatial.image_path(adata)
    tissue = adata.obs["in_tissue"].to_numpy() == 1
    picture = adata.obs["in_picture"].to_numpy()
    with run.step("filter", "spots") as note:
        kept: AnnData = adata[tissue & picture].copy()
        off, away = int((~tissue).sum()), int((tissue & ~picture).sum())
        did = f"{kept.n_obs:,} in tissue; left out {off:,} off tissue, {away:,} off the picture"
        note.update(did=did, amount=adata.n_obs)
    if kept.n_obs < 2:
        raise ValueError(f"slide: expected at least 2 spots in tissue, got {kept.n_obs}")
    return kept


def _choose_genes(run: Run, adata: AnnData, n_top_genes: int, workers: int | None) -> None:
    with run.step("hvg", "counts") as note:
        highly_variable_genes(adata, n_top_genes=min(n_top_genes, adata.n_vars), workers=workers)
        best = adata.var["highly_variable_rank"].nsmallest(3).index
        note.update(did=f"{n_top_genes} genes, first {', '.join(best)}", amount=adata.X.nnz)


def _load(run: Run, adata: AnnData, **options: Any) -> NDArray[np.uint8]:
    """An epoch of batches; the first tiles of the first batch come back."""
    from stfast import TileLoader

    with run.step("load", "tiles") as note:
        loader = TileLoader(adata, **options)
        first, seen = np.empty((0, loader.size, loader.size, 3), np.uint8), 0
        for batch in loader:
            if not seen:
                first = batch.image[:12].cpu().numpy().copy()
            seen += len(batch)
        did = f"{len(loader)} batches of {loader.size} px tiles + {len(loader.genes)} genes"
        note.update(did=f"{did} on {loader.device}", amount=seen)
    return first


def draw(adata: AnnData, tiles: NDArray[np.uint8], path: Path, *, gene: str | None = None) -> None:
    """Draw the slide, its spots coloured by one gene, and a strip of tiles.

    Parameters
    ----------
    adata
        Spots with counts, centres and a picture.
    tiles
        (n, size, size, 3) uint8 to show in the strip.
    path
        PNG to write.
    gene
        Name of the gene; ``None``: the most variable one.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "matplotlib: expected it for the picture; pip install 'stfast[plot]'"
        raise ImportError(message) from error

    gene = gene or str(adata.var["highly_variable_rank"].idxmin())
    if gene not in adata.var_names:
        raise ValueError(f"gene: expected one of the slide's, got {gene!r}")
    picture = open_image(_spatial.image_path(adata))
    pixels, scale = thumbnail(picture, 1600)
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[6.2, 1.3])
    top, bottom = parts
    plain, coloured = top.subplots(1, 2)
    plain.imshow(pixels)
    plain.set_title(_spatial.library(adata)[0])
    coloured.imshow(pixels)
    meaning = _add_dots(coloured, adata, scale, gene)
    coloured.set_title(f"{gene}, log counts")
    bottom.suptitle("first tiles of an epoch", fontsize=10)
    strip = np.atleast_1d(bottom.subplots(1, len(tiles)))
    for panel, tile in zip(strip, tiles, strict=True):
        panel.imshow(tile)
    for panel in (plain, coloured, *strip):
        panel.set_axis_off()
    top.colorbar(meaning, ax=coloured, shrink=0.7)
    with whole(path) as partial:
        figure.savefig(partial, dpi=110)


def _add_dots(panel: Any, adata: AnnData, scale: float, gene: str) -> Any:
    """Spots as circles of their own size, in the thumbnail's pixels; what the colours mean."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import Normalize

    values = adata[:, gene].X
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    values = np.log1p(values.ravel())
    scaled = Normalize(0, max(float(values.max()), 1e-9))
    diameter = np.full(adata.n_obs, _spatial.spot_span(adata) * scale)
    dots = EllipseCollection(
        diameter,
        diameter,
        np.zeros(adata.n_obs),
        units="xy",
        offsets=_spatial.centers(adata) * scale,
        offset_transform=panel.transData,
        # Where the gene is silent the tissue shows through.
        facecolors=colormaps["viridis"](scaled(values), alpha=0.2 + 0.8 * scaled(values)),
        linewidth=0,
    )
    panel.add_collection(dots)
    return ScalarMappable(scaled, "viridis")
