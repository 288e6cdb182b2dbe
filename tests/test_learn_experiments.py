"""Whole experiments on a built dataset: tables against plain ones, pictures, commands."""

import anndata
import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn import metrics

import oracles_learn
import stfast
from oracles_tissue import LAYERS, build_tissue
from stfast import learn


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_tissue(tmp_path_factory.mktemp("tissue"), 4, side=300)


@pytest.fixture(scope="module")
def embedded(dataset, tmp_path_factory):
    """Embeddings that know the layers, and some that know nothing."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("embedded")
    index = dataset.index.sort("slide", "spot")  # rows' own order follows from paths
    number = np.array([LAYERS.index(label) for label in index["label"]])
    known = rng.normal(size=(len(number), 6)) + 3 * np.eye(6)[number]
    for name, matrix in {"good": known, "bad": rng.normal(size=(len(number), 6))}.items():
        column = pl.Series("embedding", matrix.astype(np.float32), dtype=pl.Array(pl.Float32, 6))
        keys = index.select("slide", "spot").with_columns(column)
        keys.sample(fraction=1, shuffle=True, seed=1).write_parquet(folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in ("good", "bad")}


def same_picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).std()


def test_probing_a_dataset_is_the_transcription(dataset, embedded):
    table = learn.probe_models(dataset, embedded)
    assert table.select("model", "split").rows() == [
        ("good", "spot"), ("good", "slide"), ("bad", "spot"), ("bad", "slide"),
    ]  # fmt: skip
    x = learn.read_embeddings(embedded["good"], dataset)[1]
    (alpha, mean, sd), _ = oracles_learn.probe(x, np.array(dataset.index["label"].to_list()))
    assert table.row(0)[2:5] == (mean, sd, alpha)
    good, bad = (table.filter(model=m)["f1"].to_list() for m in ("good", "bad"))
    assert min(good) > 0.8
    assert max(bad) < 0.5


def test_labels_may_be_a_table(dataset, embedded, tmp_path):
    table = dataset.index.select("slide", "spot", pl.col("label").str.replace("L4", "Exclude"))
    table.write_csv(tmp_path / "labels.csv")
    found = learn.probe_models(dataset, embedded, labels=tmp_path / "labels.csv")
    assert found["n_dropped"][0] == (dataset.index["label"] == "L4").sum()
    few = dataset.filter(slide=["s0", "s1"])
    assert learn.probe_models(few, embedded)["split"].to_list() == ["spot", "spot"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"slide": ["s0"], "spot": ["a"]}, "expected slide, spot and label"),
        ({"slide": ["s0"], "spot": ["a"], "label": ["L1"]}, "expected labels of the dataset"),
        ({"slide": ["s0"] * 2, "spot": ["a"] * 2, "label": ["L1"] * 2}, "each spot once"),
    ],
)
def test_bad_tables_of_labels_are_refused(dataset, tmp_path, table, message):
    pl.DataFrame(table).write_parquet(tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match=message):
        learn.labels_of(dataset, tmp_path / "labels.parquet")


def test_clusters_of_a_dataset_are_scored_by_slide(dataset, embedded):
    table = learn.cluster_models(dataset, embedded)
    assert table.height == 8
    here = dataset.filter(slide="s2")
    x = learn.read_embeddings(embedded["bad"], here)[1]
    expected = metrics.silhouette_score(x, here.index["label"].to_list())
    row = table.filter(model="bad", slide="s2")
    assert row["silhouette"].item() == pytest.approx(expected, rel=1e-6)


def test_tsne_is_scikit_learns(dataset, embedded):
    from sklearn.manifold import TSNE

    x = learn.read_embeddings(embedded["good"], dataset.filter(slide="s0"))[1]
    perplexity = min(30, (len(x) - 1) / 3)
    expected = TSNE(perplexity=perplexity, random_state=3).fit_transform(x)
    np.testing.assert_array_equal(learn.tsne(x, seed=3), expected)
    with pytest.raises(ValueError, match="at least 4 spots"):
        learn.tsne(x[:3])


def test_expression_is_scanpys(dataset):
    sc = pytest.importorskip("scanpy")
    adata = anndata.AnnData(dataset.counts.astype(np.float64))
    adata.var_names = dataset.genes
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    part = dataset.filter(slide="s1")
    genes = ["g30", "g02"]
    np.testing.assert_allclose(
        learn.expression(part, genes), adata[part.rows, genes].X.toarray(), rtol=1e-5
    )
    with pytest.raises(ValueError, match="expected 'ERBB2' in"):
        learn.expression(dataset, ["ERBB2"])


def test_genes_are_predicted_on_other_slides(dataset, embedded):
    genes = ["g00", "g59"]  # a marker of the first layer, and one of none
    found = learn.predict_slides(
        dataset, embedded["good"], genes=genes, train=["s0", "s1"], test=["s2", "s3"]
    )
    first = dataset.filter(slide=["s0", "s1"])
    x = learn.read_embeddings(embedded["good"], first)[1]
    alpha, mse, _ = oracles_learn.ridge(x, learn.expression(first, genes)[:, 0])
    assert found.within.row(0)[:3] == ("g00", alpha, pytest.approx(mse, rel=1e-6))
    assert found.across["slide"].to_list() == ["s2", "s2", "s3", "s3"]
    marker, other = (found.across.filter(gene=g)["pearson"] for g in genes)
    assert marker.min() > 0.35
    assert other.max() < 0.3
    s2 = found.spots.filter(slide="s2")
    r = np.corrcoef(s2["g00"], s2["g00 predicted"])[0, 1]
    assert r == pytest.approx(found.across["pearson"][0], rel=1e-4)


@pytest.mark.parametrize(("train", "test"), [(["s9"], []), (["s0"], ["s0"]), ([], ["s0"])])
def test_slides_to_predict_are_checked(dataset, embedded, train, test):
    with pytest.raises(ValueError, match="slides: expected different ones"):
        learn.predict_slides(dataset, embedded["good"], genes=["g00"], train=train, test=test)


# --- commands ----------------------------------------------------------------------------------


def test_commands_of_embeddings_write_tables_and_pictures(dataset, embedded, found, tmp_path):
    words = [w for name, path in embedded.items() for w in ("-e", f"{name}={path}")]
    probed = found("probe", dataset.root, *words, "-o", tmp_path / "probe")["rows"]
    assert [row["f1"] for row in probed] == learn.probe_models(dataset, embedded)["f1"].to_list()
    assert pl.read_csv(tmp_path / "probe/probe.csv").height == 4
    scored = found("cluster", dataset.root, *words, "--slide", "s1", "-o", tmp_path / "cluster")
    assert [row["slide"] for row in scored["rows"]] == ["s1", "s1"]
    words = ["-e", embedded["good"], "--gene", "g00", "--train", "s0", "--test", "s2"]
    told = found("predict", dataset.root, *words, "-o", tmp_path / "predict")["rows"]
    assert [row["slide"] for row in told] == ["within", "s2"]
    assert pl.read_parquet(tmp_path / "predict/spots.parquet").height == 81
    for name in ("probe/probe", "cluster/s1", "predict/g00"):
        assert same_picture(tmp_path / f"{name}.png") > 10


def test_commands_train_and_embed(dataset, found, tmp_path):
    model = "test_learn_train:tiny"
    words = ("--model", model, "--epochs", 2, "--batch-size", 64, "--device", "cpu")
    told = found("train", dataset.root, tmp_path / "run", *words, "--slide", "s0", "--slide", "s1")
    assert told["steps"] == 6
    again = found("train", dataset.root, tmp_path / "run", *words, "--slide", "s0", "--slide", "s1")
    assert (again["steps"], again["loss"]) == (6, told["loss"])
    made = found(
        "embed", dataset.root, "-o", tmp_path / "e.parquet", "--model", tmp_path / "run",
        "--layer", "joint", "--adata", tmp_path / "h5ad", "--device", "cpu",
    )  # fmt: skip
    assert (made["n_spots"], made["width"]) == (len(dataset), 32)
    adata = anndata.read_h5ad(tmp_path / "h5ad/s3.h5ad")
    assert adata.obsm["X_embedding"].shape == (81, 32)
    assert np.isfinite(adata.obsm["X_embedding"]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "ROOT", "out", "--slide", "s7"], "expected one of its slides, got 's7'"),
        (["train", "ROOT", "out", "--model", "timm:no_such_net"], "the name of a model"),
        (["embed", "ROOT", "-o", "e.parquet", "--model", "./none"], "expected a model's weights"),
        (["probe", "ROOT", "-e", "a=x", "-e", "a=y"], "each model once, got 'a' again"),
        (["cluster", "ROOT", "-e", "none.parquet"], "none.parquet"),
        (["predict", "ROOT", "-e", "x", "--gene", "g00", "--train", "s8"], "got 's8'"),
    ],
)
def test_what_commands_refuse(*, dataset, stfast_says, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = stfast_says(*(dataset.root if word == "ROOT" else word for word in words))
    status, out, err = said
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert message in err


def test_pictures_are_drawn_where_the_slides_picture_is_gone(dataset, embedded, tmp_path):
    from stfast import _spatial

    picture = _spatial.image_path(dataset.adata("s0"))
    moved = picture.with_suffix(".away")
    picture.rename(moved)
    try:
        (path,) = learn.draw_slides(dataset.filter(slide="s0"), embedded, tmp_path)
    finally:
        moved.rename(picture)
    assert same_picture(path) > 10
    assert isinstance(stfast.Dataset(dataset.root), stfast.Dataset)


# --- the page ----------------------------------------------------------------------------------


def test_the_report_has_every_table_and_picture_in_one_file(dataset, tmp_path):
    said = []
    page = learn.write_report(
        dataset,
        tmp_path / "paper",
        models={"tiny <1>": "test_learn_train:tiny"},
        held=["s2", "s3"],
        genes=["g00"],
        device="cpu",
        report=said.append,
        epochs=1,
        batch_size=64,
    )
    text = page.read_text()
    assert text.count("<img") == 2 + 1 + 2 + 3  # losses, bars, t-SNE of two slides, a gene by model
    assert text.count("data:image/png;base64,") == text.count("<img")
    assert "http:" not in text  # the letters alone may stand in a picture's base64
    assert "https:" not in text
    assert "tiny &lt;1&gt;, overlap" in text
    f1 = learn.probe_models(
        dataset.filter(slide=["s2", "s3"]), {"a": tmp_path / "paper/tiny <1>.parquet"}
    )["f1"][0]
    assert f"<td>{f1:.3f}</td>" in text
    assert "tiny <1>, hvg: training" in said
    with pytest.raises(ValueError, match="held: expected some of"):
        learn.write_report(dataset, tmp_path, models={}, held=["s9"])
