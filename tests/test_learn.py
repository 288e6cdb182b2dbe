"""The paper's protocols against literal transcriptions, its shapes, and bad input."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from oracles_learn import loss, probe, ridge
from stfast import learn

LAYERS = np.array(["L1", "L2", "WM"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def spots():
    """Noisy embeddings of three layers on four slides, 240 spots."""
    rng = np.random.default_rng(7)
    y = np.repeat(np.arange(3), (150, 60, 30))[rng.permutation(240)]  # unequal on purpose
    x = rng.normal(size=(240, 8)) + rng.normal(size=(3, 8))[y]
    return x, LAYERS[y], np.repeat(["a", "b", "c", "d"], 60)


# --- model and loss ----------------------------------------------------------------------------


def test_the_loss_equals_plain_sums():
    torch.manual_seed(0)
    a, b, scale = torch.randn(7, 32), torch.randn(7, 32), torch.tensor(math.log(1 / 0.07))
    assert learn.contrastive_loss(a, b, scale).item() == pytest.approx(
        loss(a, b, scale).item(), rel=1e-5
    )


def test_the_loss_of_equal_pairs_is_less_than_of_shuffled_ones():
    torch.manual_seed(0)
    a, scale = torch.randn(16, 32), torch.tensor(math.log(1 / 0.07))
    paired = learn.contrastive_loss(a, a, scale)
    assert paired < learn.contrastive_loss(a, a.roll(1, 0), scale) - 1


def test_the_parameters_have_the_papers_shapes():
    model = learn.ContrastiveModel(nn.Identity(), width=512, n_genes=128)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "logit_scale": (),
        "image_head.weight": (32, 512),
        "image_head.bias": (32,),
        "gene_head.weight": (32, 128),
        "gene_head.bias": (32,),
    }
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    for head, n in ((model.image_head, 512), (model.gene_head, 128)):
        bound = math.sqrt(6 / (n + 32))
        assert 0.95 * bound < head.weight.abs().max() <= bound


def test_a_clip_tower_learns_pairs():
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=24,
    )
    tower = CLIPVisionModelWithProjection(config)
    model = learn.ContrastiveModel(tower, width=24, n_genes=10)
    images, genes = torch.randn(12, 3, 32, 32), torch.rand(12, 10)
    assert [e.shape for e in model(images, genes)] == [(12, 32)] * 2
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        value = model.loss(images, genes)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 1


def test_the_optimizer_is_the_papers():
    (group,) = learn.paper_optimizer(nn.Linear(2, 2)).param_groups
    found = (group["lr"], group["betas"], group["eps"], group["weight_decay"])
    assert found == (5e-5, (0.9, 0.98), 1e-6, 0.2)


def test_a_tower_of_another_width_is_refused():
    model = learn.ContrastiveModel(nn.Identity(), width=512, n_genes=3)
    with pytest.raises(ValueError, match=r"expected output \(n, 512\), got \(2, 768\)"):
        model(torch.zeros(2, 768), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="expected equal shapes"):
        learn.contrastive_loss(torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(()))


# --- probe -------------------------------------------------------------------------------------


def test_probing_equals_the_transcription(spots):
    x, y, _ = spots
    found = learn.linear_probe(x, y.tolist())
    best, grid = probe(x, y)
    assert (found.alpha, found.mean, found.sd) == best
    np.testing.assert_array_equal(found.test, grid)
    assert 0 < found.sd < found.mean < 1


def test_labels_are_dropped_and_counted(spots):
    x, y, _ = spots
    more = np.concatenate([x, np.full((4, 8), 1e3)])
    labels = [*y.tolist(), "undetermined", "Exclude", "", None]
    found = learn.linear_probe(more, labels)
    assert (found.n_spots, found.n_dropped) == (240, 4)
    assert found.mean == learn.linear_probe(x, y.tolist()).mean


def test_whole_slides_are_held_out():
    rng = np.random.default_rng(0)
    y, slides = np.tile([0, 1], 120), np.repeat(["a", "b", "c", "d"], 60)
    # Only the slide's own constant, with the layer's sign, tells the layer: nothing transfers.
    own = rng.permutation(np.eye(4))[np.repeat(np.arange(4), 60)] * (2 * y - 1)[:, None]
    by_spot = learn.linear_probe(own, LAYERS[y].tolist())
    by_slide = learn.linear_probe(own, LAYERS[y].tolist(), slides=slides.tolist())
    assert by_spot.mean > 0.99
    assert by_slide.mean < 0.6


@pytest.mark.parametrize(
    ("labels", "slides", "message"),
    [
        (["L1"] * 20, None, "at least 2 kinds"),
        (["L1"] * 19, None, "labels: expected 20 values"),
        (["L1", "L2"] * 10, ["a", "b"] * 10, "at least 3 to split by slide, got 2"),
        (["L1", "L2"] * 4 + [None] * 12, None, "at least 10"),
    ],
)
def test_bad_labels_are_refused(labels, slides, message):
    with pytest.raises(ValueError, match=message):
        learn.linear_probe(np.zeros((20, 2)), labels, slides=slides)


def test_bad_embeddings_are_refused():
    with pytest.raises(ValueError, match="finite"):
        learn.linear_probe([[np.nan]] * 20, ["L1", "L2"] * 10)
    with pytest.raises(ValueError, match="shape"):
        learn.linear_probe([0.0] * 20, ["L1", "L2"] * 10)


# --- scores ------------------------------------------------------------------------------------


def test_scores_equal_scikit_learns_on_each_slide(spots):
    x, y, slides = spots
    labels = [*y.tolist()]
    labels[0] = None
    found = learn.cluster_scores(x, labels, slides=slides.tolist())
    assert found["slide"].to_list() == ["a", "b", "c", "d"]
    assert found["n_dropped"].to_list() == [1, 0, 0, 0]
    for name, row in zip("abcd", found.iter_rows(named=True), strict=True):
        here = (slides == name) & (np.arange(240) > 0)
        for score in ("silhouette", "calinski_harabasz", "davies_bouldin"):
            assert row[score] == getattr(metrics, f"{score}_score")(x[here], y[here])


def test_a_slide_with_one_label_has_no_scores():
    found = learn.cluster_scores(np.eye(4), ["L1"] * 4, slides=["a"] * 4)
    assert found.row(0) == ("a", 4, 0, None, None, None)


# --- predict -----------------------------------------------------------------------------------


def test_ridge_equals_the_transcription(spots):
    x, _, _ = spots
    rng = np.random.default_rng(1)
    y = x @ rng.normal(size=(8, 3)) + rng.normal(size=(240, 3))
    table = learn.predict_genes(x, y, genes=["A", "B", "C"]).table
    for g, row in enumerate(table.iter_rows(named=True)):
        alpha, mse, pearson = ridge(x, y[:, g])
        assert (row["alpha"], row["mse"]) == (alpha, mse)
        assert row["pearson"] == pytest.approx(pearson, rel=1e-12)


def test_a_fit_predicts_another_slide(spots):
    x, _, _ = spots
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(8, 2))
    fit = learn.predict_genes(x, x @ weights, genes=["A", "B"])
    other = rng.normal(size=(50, 8))
    np.testing.assert_allclose(fit.predict(other), other @ weights, atol=0.01)
    scores = fit.score(other, other @ weights)
    assert scores["gene"].to_list() == ["A", "B"]
    assert scores["pearson"].min() > 0.999
    assert scores["mse"].max() < 1e-3


def test_a_constant_gene_has_no_correlation(spots):
    x, _, _ = spots
    fit = learn.predict_genes(x, np.zeros((240, 1)), genes=["A"])
    assert fit.table["pearson"].to_list() == [None]
    with pytest.raises(ValueError, match="expected 8 wide, got 2"):
        fit.predict(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"expression: expected \(3, 1\), got \(3, 2\)"):
        fit.score(np.zeros((3, 8)), np.zeros((3, 2)))


def test_bad_expression_is_refused():
    with pytest.raises(ValueError, match="genes: expected 2 values"):
        learn.predict_genes(np.zeros((20, 2)), np.zeros((20, 2)), genes=["A"])
    with pytest.raises(ValueError, match="at least 20 rows"):
        learn.predict_genes(np.zeros((9, 2)), np.zeros((9, 1)), genes=["A"])
