"""What a dataset says of itself, read by those who would use it without stfast."""

import hashlib
import io
import json
import re
import warnings

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

import stfast
from test_build import SETTINGS, one_thread, raw

__all__ = ["one_thread", "raw"]

STUDY = "Trees | and *slides*"
LICENSES = [[None] * 3, ["MIT", "CC0-1.0", None], ["MIT", "MIT", None], ['My "own"'] * 3]


@pytest.fixture(scope="module")
def described(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("described") / "out"
    table = raw.with_columns(
        license=pl.Series(["CC-BY-4.0", "CC-BY-4.0", None]),
        source_url=pl.lit("https://example.org/slides"),
        title=pl.lit(STUDY),
        patient=pl.Series(["p1", "p1", "p2"]),
    )
    stfast.build(table, out, **SETTINGS, shard_bytes=60_000, workers=1)
    return stfast.Dataset(out)


def test_croissant_is_valid_and_reads_the_tables(described):
    mlcroissant = pytest.importorskip("mlcroissant")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mlcroissant.Dataset(jsonld=described.root / "dataset.json")
        assert not found.metadata.ctx.issues.errors
        records = list(found.records("spots"))
        slides = list(found.records("slides"))
    assert len(records) == len(described)
    names = described.index.columns
    for record, row in zip(records[:20], described.index.rows(named=True), strict=False):
        said = {n: record[f"spots/{n}"] for n in names}
        said = {n: v.decode() if isinstance(v, bytes) else v for n, v in said.items()}
        assert said == pytest.approx(row)
    assert sorted(s["slides/slide"].decode() for s in slides) == ["a", "b", "c"]
    metadata = json.loads((described.root / "dataset.json").read_text())
    assert metadata["license"] == ["CC-BY-4.0", "not said"]
    assert metadata["stfast"]["format_version"] == 1
    for file in metadata["distribution"][:-1]:
        content = (described.root / file["contentUrl"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_the_card_has_a_header_and_measured_facts(described):
    text = (described.root / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    said = yaml.safe_load(header)
    assert (said["license"], said["license_name"]) == ("other", "CC-BY-4.0; not said")
    assert said["size_categories"] == ["n<1K"]
    assert {c["config_name"]: c["data_files"] for c in said["configs"]}["spots"] == "index.parquet"
    sections = re.findall("^## (.*)$", body, re.MULTILINE)
    assert sections == [
        *("Motivation", "Composition", "Collection process", "Preprocessing", "Uses"),
        "Distribution and maintenance",
    ]
    assert "`license` of 1 of 3, `consent` of 3 of 3" in body
    assert r"Trees \| and \*slides\*" in body
    assert "2 patients are told apart" in body
    counts = int(described.index["n_counts"].sum())
    for fact in (f"| slides | {3} |", f"| {len(described):,} |", f"| counts | {counts:,} |"):
        assert fact in body


@pytest.mark.parametrize("licenses", LICENSES)
def test_a_card_of_any_licenses_has_a_header_that_parses(raw, licenses):
    from stfast.dataset import _card

    slides = raw.with_columns(license=pl.Series(licenses, dtype=pl.String))
    said = yaml.safe_load(_card._header("a: b #\n'c'", slides, 5_000_000).strip("-"))
    assert said["license"] == "other"
    words = sorted({x for x in licenses if x}) + ["not said"] * (None in licenses)
    assert said["license_name"] == "; ".join(words)
    assert said["size_categories"] == ["1M<n<10M"]
    assert said["pretty_name"] == "a: b # 'c'"


def test_a_license_of_all_slides_is_the_datasets(raw):
    from stfast.dataset import _card

    slides = raw.with_columns(license=pl.Series(["MIT", " MIT", "MIT\n"]))
    said = yaml.safe_load(_card._header("name", slides, 5).strip("-"))
    assert said["license"] == "mit"
    assert "license_name" not in said


def test_a_license_of_many_lines_is_one_line_of_the_header(raw):
    from stfast.dataset import _card

    slides = raw.with_columns(license=pl.lit("Ours\n---\nask: us"))
    _, header, rest = re.split("^---$", _card._header("name", slides, 5), flags=re.MULTILINE)
    assert yaml.safe_load(header)["license_name"] == "Ours --- ask: us"
    assert not rest


def test_studies_are_named_by_what_is_said_of_them(raw):
    from stfast.dataset import _card

    rows = {"pmid": [None, "123", None], "title": [STUDY, None, None]}
    slides = raw.with_columns(**{n: pl.Series(v, dtype=pl.String) for n, v in rows.items()})
    assert _card._studies(slides) == "- Trees \\| and \\*slides\\*\n- 123"
    assert _card._studies(slides.drop("title", "pmid", strict=False)) == ""


def test_moments_are_those_of_each_slide(raw, described):
    for slide, path in raw.select("slide", "path").iter_rows():
        found = stfast.GeneMoments.read(described.root / f"genes/moments/{slide}.parquet")
        expected = stfast.gene_moments(stfast.read(path))
        assert found.table.equals(expected.table)
        assert found.totals.equals(expected.totals)


def test_shards_load_in_webdataset(described):
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, (described.root / "tiles").iterdir()))
    assert len(urls) > 1
    pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    samples = list(pipeline)
    assert len(samples) == len(described)
    for sample, row in zip(samples, described.index.rows(named=True), strict=True):
        assert sample["json"]["spot"] == row["spot"]
        assert sample["json"]["slide"] == row["slide"]
        shard = (described.root / f"tiles/{row['shard']:05}.tar").read_bytes()
        coded = shard[row["offset"] :][: row["length"]]
        assert np.array_equal(sample["png"], np.asarray(Image.open(io.BytesIO(coded))))


def test_the_index_loads_in_duckdb(described):
    duckdb = pytest.importorskip("duckdb")
    path = described.root / "index.parquet"
    found = duckdb.sql(f"SELECT slide, count(*), sum(n_counts) FROM '{path}' GROUP BY slide")
    expected = described.index.group_by("slide").agg(pl.len(), pl.col("n_counts").sum())
    assert sorted(found.fetchall()) == sorted(expected.rows())


def test_the_index_loads_in_hugging_faces_datasets(described, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(described.root), "spots", cache_dir=str(tmp_path))["train"]
    assert found.num_rows == len(described)
    assert found["spot"][:] == described.index["spot"].to_list()


def test_genes_that_all_slides_share(raw, tmp_path):
    out, settings = tmp_path / "out", SETTINGS | {"hvg": "overlap:7"}
    stfast.build(raw, out, **settings)
    dataset = stfast.Dataset(out)
    slides = {s: stfast.read(p) for s, p in raw.sort("slide").select("slide", "path").iter_rows()}
    expected = stfast.hvg_overlap(slides, 7)
    assert dataset.hvg.shape == (len(dataset), 7)
    wanted = dict(
        zip(expected.obs[["slide", "spot"]].itertuples(index=False), expected.X, strict=True)
    )
    for row, place in zip(dataset.hvg, dataset.index.select("slide", "spot").rows(), strict=True):
        assert np.array_equal(row, wanted.get(place, np.zeros(7)))
    for slide in slides:
        table = dataset.hvg_genes.filter(slide=slide).sort("rank")
        assert table["gene"].to_list() == list(expected.var_names)
    assert stfast.build(raw, out, **SETTINGS | {"hvg": "overlap:4"}).staged == []
    assert stfast.Dataset(out).hvg.shape[1] == 4


@pytest.mark.parametrize("hvg", ["pearson", "seurat:5", "overlap:0", "overlap:x", ":3"])
def test_a_recipe_that_is_none_is_refused(raw, tmp_path, hvg):
    with pytest.raises(ValueError, match="hvg: expected pearson:N or overlap:N"):
        stfast.build(raw, tmp_path / "out", **SETTINGS | {"hvg": hvg})
