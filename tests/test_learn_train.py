"""Training and embedding of a built dataset: pixels, gradients, checkpoints, bad input."""

import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessorPil

import stfast
from oracles import at_any_workers, picture
from oracles_learn import loss as plain_loss
from oracles_tissue import build_tissue, write_clip
from stfast import learn
from stfast.learn.towers import of_timm

FAST = {"batch_size": 64, "lr": 1e-3, "device": "cpu"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_tissue(tmp_path_factory.mktemp("tissue"), 3, side=300)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def tiny():
    """A tower that a checkpoint finds by the name of this function."""
    module = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 12))
    return learn.own(module, width=12, name="test_learn_train:tiny")


# --- pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 40, 25])
@pytest.mark.parametrize(("resize", "crop"), [(32, 32), (48, 32)])
def test_pixels_are_the_processors_bit_for_bit(tmp_path, side, resize, crop):
    tower = learn.open_tower(write_clip(tmp_path, image_size=crop, resize=resize))
    tiles = np.stack([picture(side, side, seed=n) for n in range(3)])
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    expected = processor([Image.fromarray(t) for t in tiles], return_tensors="np")["pixel_values"]
    found = at_any_workers(
        lambda n: tower.preprocess(torch.from_numpy(tiles), workers=n).contiguous().numpy()
    )
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_pixels_of_a_timm_model_are_its_transforms():
    timm = pytest.importorskip("timm")
    module = timm.create_model("resnet10t.c3_in1k", pretrained=False, num_classes=0)
    tower = of_timm(module, "resnet10t.c3_in1k")
    tile = picture(176, 176, seed=1)
    config = timm.data.resolve_data_config({}, model=module)
    expected = timm.data.create_transform(**config)(Image.fromarray(tile)).numpy()
    found = tower.preprocess(torch.from_numpy(tile[None]))[0].numpy()
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, tower.width)


def test_plain_pixels_are_of_the_mean_and_deviation():
    tile = picture(20, 20, seed=2)
    found = learn.plain(20, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))(torch.from_numpy(tile[None]))
    expected = (tile / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_bad_pixels_are_refused():
    with pytest.raises(ValueError, match="crop: expected at most 8 pixels, got 9"):
        learn.Preprocess(8, 9, torch.zeros(256, 3))
    with pytest.raises(ValueError, match="table: expected float32"):
        learn.Preprocess(8, 8, torch.zeros(3, 256))
    with pytest.raises(ValueError, match="tiles: expected at least 9 pixels, got 8"):
        learn.Preprocess(None, 9, torch.zeros(256, 3))(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


# --- towers ------------------------------------------------------------------------------------


def test_weights_that_cannot_be_had_are_told_with_the_way_out(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"expected a model's weights.*a folder that"):
            learn.train(dataset, tmp_path / "run", model=name, **FAST)
    assert not (tmp_path / "run").exists()


def test_a_hub_out_of_reach_is_told_at_once():
    code = "from stfast import learn; learn.open_tower('openai/clip-vit-base-patch32')"
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert "give the path of a folder" in done.stderr.splitlines()[-1]
    assert "Retrying" not in done.stderr


@pytest.mark.parametrize("name", ["no.module:tower", "os:nothing", "os:getcwd"])
def test_functions_that_give_no_tower_are_told(name):
    with pytest.raises(ValueError, match="expected"):
        learn.open_tower(name)


# --- training ----------------------------------------------------------------------------------


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("genes", ["hvg", "overlap", "counts"])
def test_training_learns_from_each_input(dataset, clip, tmp_path, genes):
    made = learn.train(dataset, tmp_path / "run", model=clip, genes=genes, epochs=6, **FAST)
    means = made.history.group_by("epoch", maintain_order=True).agg(pl.col("loss").mean())["loss"]
    assert means[-1] < means[0] - 0.2
    assert made.history["spots"].sum() == 6 * len(dataset)
    assert made.spots_per_second > 0
    assert 0 <= made.share_waiting < 1
    written = pl.read_csv(tmp_path / "run/loss.csv")
    assert written["loss"].to_list() == made.history["loss"].to_list()
    with Image.open(tmp_path / "run/loss.png") as drawn:
        assert drawn.size[0] > 300


def test_the_first_loss_is_the_plain_one(dataset, clip, tmp_path):
    made = learn.train(dataset, tmp_path / "a", model=clip, epochs=1, **FAST)
    torch.manual_seed(0)
    tower = learn.open_tower(clip)
    model = learn.ContrastiveModel(tower.module, width=24, n_genes=20)
    batch = next(iter(dataset.loader(batch_size=64, seed=0, device="cpu")))
    model.train()
    with torch.no_grad():
        torch.manual_seed(int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]))
        images, genes = model(tower.preprocess(batch.image), batch.genes)
        expected = plain_loss(images, genes, model.logit_scale)
    assert made.history["loss"][0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("genes", "augment"), [("hvg", stfast.Augment(brightness=0.2)), ("counts", None)]
)
def test_a_stopped_run_goes_on_to_the_same_bits(dataset, clip, tmp_path, genes, augment):
    options = FAST | {"model": clip, "genes": genes, "epochs": 3, "augment": augment}
    learn.train(dataset, tmp_path / "whole", **options)

    def stop(step):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn.train(dataset, tmp_path / "parts", save_every=5, progress=stop, **options)
    left = torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)
    assert len(left["history"]) == 5
    again = learn.train(dataset, tmp_path / "parts", **options | {"model": "nowhere/at-all"})
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    one, other = (pl.read_csv(tmp_path / f"{f}/loss.csv")["loss"] for f in ("whole", "parts"))
    assert one.to_list() == other.to_list() == again.history["loss"].to_list()


def test_a_checkpoint_of_another_run_is_refused(dataset, clip, tmp_path):
    learn.train(dataset, tmp_path / "run", model=clip, epochs=1, **FAST)
    with pytest.raises(ValueError, match=r"expected lr 0.001, its checkpoint's, got 0.5"):
        learn.train(dataset, tmp_path / "run", model=clip, **FAST | {"lr": 0.5})
    with pytest.raises(ValueError, match="expected spots"):
        learn.train(dataset.filter(slide="s0"), tmp_path / "run", model=clip, **FAST)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 nothing of the kind")
    with pytest.raises(stfast.FormatError, match="expected a checkpoint of stfast"):
        learn.load_checkpoint(tmp_path)
    torch.save({"format_version": 2}, tmp_path / "checkpoint.pt")
    with pytest.raises(stfast.FormatError, match="a newer stfast wrote it"):
        learn.load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="No such checkpoint"):
        learn.load_checkpoint(tmp_path / "none")


def test_half_precision_learns_too(dataset, clip, tmp_path):
    options = FAST | {"model": clip, "epochs": 4}
    half = learn.train(dataset, tmp_path / "half", precision="bf16", **options).history["loss"]
    full = learn.train(dataset, tmp_path / "full", **options).history["loss"]
    assert half.to_list() != full.to_list()
    np.testing.assert_allclose(half, full, atol=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": "all"}, "genes: expected hvg, overlap or counts"),
        ({"precision": "fp8"}, "precision"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "global_batch_size"),
    ],
)
def test_bad_arguments_are_refused(dataset, clip, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        learn.train(dataset, tmp_path / "run", **{**FAST, "model": clip, **options})


# --- ranks -------------------------------------------------------------------------------------

RANKS = """
import sys
import torch
from stfast import Dataset, learn
torch.set_num_threads(1)
learn.train(Dataset(sys.argv[1]), sys.argv[2], model=sys.argv[3], genes=sys.argv[4], epochs=2,
            batch_size=64, lr=1e-3, device="cpu", workers=1)
"""


@pytest.mark.parametrize("genes", ["hvg", "counts"])
def test_two_ranks_step_as_one_with_the_whole_batch(dataset, tmp_path, genes):
    model = f"{Path(__file__).stem}:tiny"
    (tmp_path / "ranks.py").write_text(RANKS)
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [str(tmp_path / "ranks.py"), str(dataset.root), str(tmp_path / "two"), model, genes]
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, check=False, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    n = len(dataset) // 64 * 64  # on two ranks the last part-filled batch is left out
    torch.manual_seed(0)
    tower = learn.open_tower(model)
    columns = len(torch.load(tmp_path / "two/checkpoint.pt")["about"]["genes"])
    one = learn.ContrastiveModel(tower.module, width=12, n_genes=columns)
    optimizer, losses = learn.paper_optimizer(one, lr=1e-3), []
    from stfast.learn._genes import columns_of

    inputs = columns_of(dataset, genes)
    loader = dataset.loader(batch_size=64, genes=inputs.asked, drop_last=True, device="cpu")
    for _ in range(2):
        for batch in loader:
            optimizer.zero_grad()
            value = one.loss(tower.preprocess(batch.image), inputs(batch))
            value.backward()
            optimizer.step()
            losses.append(value.item())
    written = pl.read_csv(tmp_path / "two/loss.csv")
    assert written["spots"].sum() == 2 * n
    np.testing.assert_allclose(written["loss"], losses, rtol=2e-5)
    for name, tensor in weights(tmp_path / "two").items():
        torch.testing.assert_close(tensor, one.state_dict()[name], rtol=1e-3, atol=2e-5)


# --- embedding ---------------------------------------------------------------------------------


def test_embeddings_are_the_models_row_by_row(dataset, clip, tmp_path):
    learn.train(dataset, tmp_path / "run", model=clip, epochs=1, **FAST)
    trained = learn.load_checkpoint(tmp_path / "run")
    model = trained.model.eval()
    part = dataset.filter(slide="s1")
    batch = next(iter(part.loader(batch_size=len(part), shuffle=False, device="cpu")))
    with torch.no_grad():
        own = model.features(trained.preprocess(batch.image))
        joint = model.image_head(own)
    for layer, expected in (("tower", own), ("joint", joint)):
        told = learn.embed(
            part, tmp_path / "e.parquet", model=tmp_path / "run", layer=layer, device="cpu"
        )
        assert (told.n_spots, told.width) == tuple(expected.shape)
        assert told.spots_per_second > 0
        keys, found = learn.read_embeddings(tmp_path / "e.parquet", part)
        assert keys["spot"].to_list() == part.index["spot"].to_list()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    adata = part.adata("s1")
    learn.to_obsm(adata, tmp_path / "e.parquet", "s1")
    place = [adata.obs_names.get_loc(spot) for spot in keys["spot"]]
    np.testing.assert_array_equal(adata.obsm["X_embedding"][place], found)


def test_embeddings_are_of_a_known_precision(dataset, clip, tmp_path):
    with pytest.raises(ValueError, match="precision: expected one of fp32, bf16, got 'fp16'"):
        learn.embed(dataset, tmp_path / "e.parquet", model=clip, precision="fp16")
    assert not list(tmp_path.glob("e.parquet*"))


def test_a_stopped_embedding_goes_on(dataset, clip, tmp_path, monkeypatch):
    from stfast.learn import embedding as module

    monkeypatch.setattr(module, "PART", 2)
    options = {"model": clip, "batch_size": 16, "device": "cpu"}
    learn.embed(dataset, tmp_path / "whole.parquet", **options)

    def stop(done):
        if done >= 80:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn.embed(dataset, tmp_path / "parts.parquet", progress=stop, **options)
    assert not (tmp_path / "parts.parquet").exists()
    seen = []
    learn.embed(dataset, tmp_path / "parts.parquet", progress=seen.append, **options)
    assert seen[0] == 80
    whole, parts = ((tmp_path / f"{n}.parquet").read_bytes() for n in ("whole", "parts"))
    assert whole == parts
    assert [p.name for p in tmp_path.iterdir() if "parts" in p.name] == ["parts.parquet"]


def test_parts_of_another_model_are_not_gone_on_with(dataset, clip, tmp_path, monkeypatch):
    from stfast.learn import embedding as module

    monkeypatch.setattr(module, "PART", 1)

    def stop(done):
        raise KeyboardInterrupt

    options = {"batch_size": 64, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        learn.embed(dataset, tmp_path / "e.parquet", model=clip, progress=stop, **options)
    torch.manual_seed(1)
    learn.embed(dataset, tmp_path / "e.parquet", model=tiny(), **options)
    assert learn.read_embeddings(tmp_path / "e.parquet")[1].shape == (len(dataset), 12)


def test_bad_embeddings_are_told(dataset, clip, tmp_path):
    with pytest.raises(ValueError, match="a name ending in"):
        learn.embed(dataset, tmp_path / "e.csv", model=clip)
    with pytest.raises(ValueError, match='expected "tower" of a model that is not fine-tuned'):
        learn.embed(dataset, tmp_path / "e.parquet", model=clip, layer="joint")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(stfast.FormatError, match="expected slide, spot and embedding"):
        learn.read_embeddings(tmp_path / "a.parquet")
    part = dataset.filter(slide="s0")
    learn.embed(part, tmp_path / "e.parquet", model=clip, device="cpu")
    with pytest.raises(ValueError, match="expected all spots of Dataset"):
        learn.read_embeddings(tmp_path / "e.parquet", dataset)
    with pytest.raises(ValueError, match="expected spots of slide 's9', got none"):
        learn.to_obsm(anndata.AnnData(np.zeros((2, 2))), tmp_path / "e.parquet", "s9")


def test_an_own_module_is_asked_for_again(dataset, tmp_path):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 12))
    tower = learn.own(module, width=12)
    learn.train(dataset, tmp_path / "run", model=tower, epochs=1, **FAST)
    with pytest.raises(ValueError, match="give tower="):
        learn.load_checkpoint(tmp_path / "run")
    found = learn.load_checkpoint(tmp_path / "run", tower=tower)
    assert_same_bits(found.model.state_dict(), weights(tmp_path / "run"))


@pytest.mark.cuda
def test_the_gpu_trains_and_embeds_as_the_cpu(dataset, clip, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    told = [
        learn.train(dataset, tmp_path / d, model=tiny(), epochs=1, **FAST | {"device": d})
        for d in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(*(t.history["loss"] for t in told), rtol=1e-3)
    for d in ("cpu", "cuda"):
        learn.embed(dataset, tmp_path / f"{d}.parquet", model=clip, device=d)
    one, other = (learn.read_embeddings(tmp_path / f"{d}.parquet")[1] for d in ("cpu", "cuda"))
    np.testing.assert_allclose(one, other, atol=1e-3)
