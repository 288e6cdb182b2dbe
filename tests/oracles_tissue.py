"""Generated tissue with known layers, as raw slides: h5ad with raw counts beside a PNG.

Curved layers cross the slide. A layer has its own markers among the genes and its own
nuclei (how many, how large); stain and light differ from slide to slide and across a
slide, so that colour alone tells no layer.
"""

import anndata
import numpy as np
import pandas as pd
import polars as pl
from PIL import Image, ImageDraw
from scipy import sparse

import stfast
from stfast.dataset import _layout

LAYERS = ("L1", "L2", "L3", "L4")
N_GENES, PITCH, SPAN = 60, 30, 32
"""Genes; pixels from spot to spot, and of a spot."""


def layer_at(x, y, side, bend):
    """The layer's number at places in pixels."""
    depth = x / side + 0.08 * np.sin(2 * np.pi * y / side + bend)
    return np.clip((depth * len(LAYERS)).astype(int), 0, len(LAYERS) - 1)


def paint(rng, side, bend):
    """Nuclei on stained tissue, RGB."""
    low = rng.normal(size=(4, 4, 3)) * 14 + rng.normal(size=3) * 18
    light = np.asarray([
        np.asarray(Image.fromarray(low[..., c].astype(np.float32)).resize((side, side), 3))
        for c in range(3)
    ])  # fmt: skip
    base = np.array([216.0, 160.0, 190.0])[:, None, None] + light
    image = Image.fromarray(np.clip(base + rng.normal(size=base.shape) * 6, 0, 255)
                            .transpose(1, 2, 0).astype(np.uint8))  # fmt: skip
    draw, dark = ImageDraw.Draw(image), rng.uniform([70, 40, 100], [110, 80, 150])
    at = rng.uniform(0, side, (side * side // 60, 2))
    layer = layer_at(at[:, 0], at[:, 1], side, bend)
    kept = rng.uniform(size=len(at)) < np.array([0.2, 0.9, 0.35, 0.6])[layer]
    radius = np.array([1.0, 1.4, 2.6, 1.2])[layer] * rng.uniform(0.8, 1.2, len(at))
    stretch = np.array([1.0, 1.0, 1.0, 2.6])[layer]
    for (x, y), r, s in zip(at[kept], radius[kept], stretch[kept], strict=True):
        colour = tuple(np.clip(dark + rng.normal(size=3) * 8, 0, 255).astype(int).tolist())
        draw.ellipse((x - s * r, y - r, x + s * r, y + r), fill=colour)
    return image


def raw_slide(folder, name, *, seed, side=480, pitch=PITCH):
    """Write ``name.h5ad`` and ``name.png``; the path of the first."""
    rng = np.random.default_rng(seed)
    bend = rng.uniform(0, 6)
    paint(rng, side, bend).save(folder / f"{name}.png")
    places = np.arange(SPAN / 2, side - SPAN / 2 + 1, pitch)
    x, y = (grid.ravel() for grid in np.meshgrid(places, places))
    layer = layer_at(x, y, side, bend)
    mean = np.full((len(x), N_GENES), 0.4) * rng.uniform(0.5, 1.5, N_GENES)
    markers = np.arange(N_GENES) // 8
    mean[markers[None, :] == layer[:, None]] += 4
    depth = rng.lognormal(0, 0.3, (len(x), 1))
    adata = anndata.AnnData(sparse.csr_matrix(rng.poisson(mean * depth).astype(np.float32)))
    adata.obs_names = [f"{name}-{n}" for n in range(len(x))]
    adata.var_names = [f"g{n:02}" for n in range(N_GENES)]
    adata.obs["layer"] = pd.Categorical(np.array(LAYERS)[layer])
    adata.obsm["spatial"] = np.stack([x, y], axis=1).astype(float)
    library = {"images": {}, "scalefactors": {"spot_diameter_fullres": float(SPAN)}}
    library["metadata"] = {"source_image_path": str(folder / f"{name}.png")}
    adata.uns["spatial"] = {name: library}
    adata.write_h5ad(folder / f"{name}.h5ad")
    return folder / f"{name}.h5ad"


def build_tissue(folder, n_slides=6, *, seed=0, size=32, side=480, pitch=PITCH):
    """A dataset built of generated slides, their layers as its labels."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    names = [f"s{n}" for n in range(n_slides)]
    paths = [
        raw_slide(raw, name, seed=100 * seed + n, side=side, pitch=pitch)
        for n, name in enumerate(names)
    ]
    table = pl.DataFrame({"slide": names, "path": [str(path) for path in paths]})
    report = stfast.build(table, folder / "built", size=size, hvg="pearson:20", tiles="png")
    assert not report.failed, report.failed
    label(folder / "built", paths)
    return stfast.Dataset(folder / "built")


def label(root, paths):
    """Write the layers into the index of a dataset that was built without."""
    known = {}
    for path in paths:
        obs = anndata.read_h5ad(path).obs
        known |= dict(zip(obs.index, obs["layer"].astype(str), strict=True))
    index = pl.read_parquet(root / _layout.INDEX)
    labels = [known[spot] for spot in index["spot"]]
    index.with_columns(pl.Series("label", labels)).write_parquet(root / _layout.INDEX)


def write_clip(folder, *, image_size=32, resize=32, width=16, dropout=0.1):
    """A tiny CLIP image tower as its users have it in a folder."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=8,
        projection_dim=24,
        attention_dropout=dropout,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    crop = {"height": image_size, "width": image_size}
    CLIPImageProcessorPil(size={"shortest_edge": resize}, crop_size=crop).save_pretrained(folder)
    return folder
