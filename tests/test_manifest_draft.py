"""Drafting a manifest: each kind of download is told, and what only looks like a slide too."""

import gzip
import shutil
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

import oracles
import oracles_readers as made
import stfast
from stfast.dataset._stage import inputs


@pytest.fixture
def downloads(tmp_path, slide):
    """A tree as it grows on a lab's disk."""
    root = tmp_path / "downloads"
    root.mkdir()
    (root / "hd").symlink_to(slide)  # links are not followed: a slide is drafted once
    shutil.copytree(slide, root / "HD colon")
    made.write_visium(root / "patient_1/outs")
    geo(root / "GSE1", "GSM100_A", "GSM101_B")
    st = root / "GSE2/mob"
    st.mkdir(parents=True)
    (st / "counts.tsv").write_text("\tA\tB\n1x2\t0\t1\n")
    Image.fromarray(oracles.picture(60, 50)).save(st / "he.jpg")
    return root


def geo(folder, *samples):
    """One folder of prefixed, gzipped files, as GEO has them."""
    outs = made.write_visium(folder.with_name("unpacked") / "outs")
    folder.mkdir()
    for sample in samples:
        for path in [*outs.glob("*.h5"), *(outs / "spatial").iterdir()]:
            target = folder / f"{sample}_{path.name}"
            if path.suffix in (".csv", ".json"):
                target.with_name(target.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            else:
                shutil.copy(path, target)
    shutil.rmtree(outs.parent)


def test_every_kind_of_download_becomes_a_row(downloads):
    draft = stfast.draft_manifest(downloads)
    assert draft.problems == []
    found = draft.table.select("slide", "path", "sample", "technology", "species")
    at = str(downloads)
    assert found.rows() == [
        ("GSM100_A", f"{at}/GSE1", "GSM100_A", "Visium", "human"),
        ("GSM101_B", f"{at}/GSE1", "GSM101_B", "Visium", "human"),
        ("mob", f"{at}/GSE2/mob", None, "ST", None),
        ("HD_colon", f"{at}/HD colon", None, "VisiumHD", None),
        ("patient_1", f"{at}/patient_1", None, "Visium", "human"),
    ]
    n = stfast.read(downloads / "patient_1").n_obs
    assert draft.n_spots.to_list() == [n, n, None, None, n]


def test_what_is_drafted_is_read_and_built(downloads, tmp_path):
    draft = stfast.draft_manifest(downloads)
    draft.write(tmp_path / "manifest.csv")
    assert "\nGSM100_A,downloads/GSE1,GSM100_A,Visium," in (tmp_path / "manifest.csv").read_text()
    with pytest.warns(UserWarning, match="license"):
        table = stfast.read_manifest(tmp_path / "manifest.csv").table
    assert table.equals(draft.table)
    with pytest.raises(FileExistsError, match="expected no such file yet"):
        draft.write(tmp_path / "manifest.csv")
    some = table.filter(pl.col("slide").is_in(["GSM100_A", "GSM101_B", "patient_1"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = stfast.build(some, tmp_path / "out", size=16, hvg="pearson:3", tiles="raw")
    assert not report.failed
    counts = stfast.Dataset(tmp_path / "out").index["slide"].value_counts()
    assert len(set(counts["count"])) == 1
    assert counts.height == 3


def test_names_that_come_again_get_their_folders(tmp_path):
    for study in ("GSE1", "GSE2"):
        made.write_visium(tmp_path / study / "Sample 1/outs")
    made.write_visium(tmp_path / "GSE3/sample_1/outs")
    names = stfast.draft_manifest(tmp_path).table["slide"].to_list()
    assert names == ["GSE1_Sample_1", "GSE2_Sample_1", "GSE3_sample_1"]


def test_all_that_only_looks_like_a_slide_is_told_at_once(tmp_path):
    outs = made.write_visium(tmp_path / "a/outs")
    for path in (outs / "spatial").glob("*positions*"):
        path.unlink()
    (tmp_path / "GSE9_RAW.tar").write_bytes(b"")
    (tmp_path / "broken.h5ad").write_bytes(b"none")
    stfast.read(made.write_visium(tmp_path / "b/outs")).write_h5ad(tmp_path / "good.h5ad")
    bare = stfast.read(tmp_path / "b")
    del bare.obsm["spatial"]
    bare.write_h5ad(tmp_path / "bare.h5ad")
    draft = stfast.draft_manifest(tmp_path)
    assert draft.table["slide"].to_list() == ["good", "b"]
    assert draft.n_spots[0] == draft.n_spots[1]
    told = "\n".join(draft.problems)
    assert len(draft.problems) == 4
    for words in ("GSE9_RAW.tar: expected it unpacked", "broken.h5ad: expected an h5ad",
                  "bare.h5ad: expected coordinates", "a: expected positions of spots"):  # fmt: skip
        assert words in told


def test_spots_of_an_h5ad_are_counted_however_their_names_are_written(tmp_path):
    adata = stfast.read(made.write_visium(tmp_path / "a/outs"))
    for slide, dtype in (("object", object), ("string", pd.StringDtype("python"))):
        adata.obs_names = adata.obs_names.astype(dtype)
        with anndata.settings.override(allow_write_nullable_strings=True):
            adata.write_h5ad(tmp_path / f"{slide}.h5ad")
    with h5py.File(tmp_path / "string.h5ad") as file:
        assert isinstance(file["obs"][file["obs"].attrs["_index"]], h5py.Group)
    draft = stfast.draft_manifest(tmp_path)
    counted = dict(zip(draft.table["slide"], draft.n_spots, strict=True))
    assert counted == dict.fromkeys(("object", "string", "a"), adata.n_obs)


def test_no_folder_and_nothing_in_it(tmp_path):
    with pytest.raises(FileNotFoundError):
        stfast.draft_manifest(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        stfast.draft_manifest(tmp_path / "file")
    draft = stfast.draft_manifest(tmp_path)
    assert (draft.table.height, draft.problems) == (0, [])


# --- STimage-1K4M ------------------------------------------------------------------------------


def test_the_published_table_gives_all_slides_and_spots(real, tmp_path):
    """1,149 slides and 4,293,195 spots; only one of them is here."""
    meta = real("stimage/meta_all_gene02122025.csv")
    slide = "Human_Breast_Andersson_10142021_ST_A1"
    for folder in ("meta", "ST/coord", "ST/annotation"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(meta, tmp_path / "meta")
    shutil.copy(real(f"stimage/{slide}_coord.csv"), tmp_path / "ST/coord")
    (tmp_path / "ST/annotation/her2.csv").write_text(f'\tV2\n"{slide}_10x11"\tinvasive\n')
    draft = stfast.draft_manifest(tmp_path)
    assert draft.table.height == 1149
    assert draft.n_spots.sum() == 4293195
    (problem,) = draft.problems
    assert problem.startswith(f"{tmp_path}: expected coord/*_coord.csv of 1149 slides, got none of")
    assert problem.endswith("1148 of them, such as GSE144239_GSM4284316")
    published = pd.read_csv(meta, dtype=str, keep_default_na=False)
    table = draft.table
    for column, theirs in (("slide", "slide"), ("technology", "tech"), ("tissue", "tissue"),
                           ("title", "title"), ("pmid", "pmid")):  # fmt: skip
        assert table[column].fill_null("").to_list() == published[theirs].tolist()
    cancer = stfast.involve_cancer(table["title"], table["abstract"], table["keywords"])
    assert (cancer.sum(), (~cancer).sum()) == (456, 693)
    row = table.row(by_predicate=pl.col("slide") == slide, named=True)
    assert row["path"] == str(tmp_path / f"ST/coord/{slide}_coord.csv")
    assert row["annotation"] == str(tmp_path / "ST/annotation/her2.csv")
    assert table["annotation"].null_count() == 1148


@pytest.fixture
def stimage(tmp_path):
    """A root without a table of slides."""
    root = tmp_path / "stimage"
    rng = np.random.default_rng(0)
    for name, n in (("one", 12), ("two", 15)):
        adata = oracles.slide_with_picture(tmp_path, n, n=n)
        stfast.write_stimage(adata, root, slide=name, technology="ST")
    (root / "ST/annotation").mkdir(exist_ok=True)
    spots = stfast.read(root / "ST/coord/two_coord.csv").obs_names
    labels = "".join(f"two_{spot}\t{rng.choice(['a', 'b'])}\n" for spot in spots)
    (root / "ST/annotation/study.csv").write_text("\tV2\n" + labels)
    return root


def test_a_root_without_its_table_gives_the_slides_that_are_there(stimage, tmp_path):
    draft = stfast.draft_manifest(stimage)
    assert draft.problems == []
    assert draft.table["slide"].to_list() == ["one", "two"]
    assert draft.table["technology"].to_list() == ["ST", "ST"]
    assert draft.n_spots.to_list() == [12, 15]
    assert draft.table["annotation"].is_null().to_list() == [True, False]
    one = stfast.read(draft.table["path"][0])
    assert one.n_obs == 12
    files = {path.name for path in inputs(draft.table.row(0, named=True))}
    assert files == {"one_coord.csv", "one_count.csv", "one.png"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = stfast.build(draft.table, tmp_path / "out", size=16, hvg="pearson:2", tiles="raw")
    assert not report.failed
    index = stfast.Dataset(tmp_path / "out").index
    assert index.filter(slide="two")["label"].null_count() == 0
    assert set(index.filter(slide="two")["label"]) <= {"a", "b"}
    assert index.filter(slide="one")["label"].null_count() == 12


# --- words, and the command --------------------------------------------------------------------


def test_species_and_tissues_have_one_name_each():
    said = ["Homo sapiens", " Mus  musculus", "GRCh38", None, "", "Rat", "Elephant", float("nan")]
    assert stfast.clean_terms(said, "species") == [
        "human", "mouse", "human", None, None, "rattus norvegicus", "elephant", None
    ]  # fmt: skip
    tissues = ["LymphNode", "Hippocampus", "mammary gland", "Cerebellum"]
    assert stfast.clean_terms(tissues, "tissue") == ["lymph node", "brain", "breast", "cerebellum"]
    own = stfast.clean_terms(["Cerebellum", "PFC"], "tissue", synonyms={"pfc": "brain"})
    assert own == ["cerebellum", "brain"]
    with pytest.raises(ValueError, match="expected species or tissue"):
        stfast.clean_terms([], "organ")
    with pytest.raises(TypeError, match="expected several texts"):
        stfast.clean_terms("human", "species")
    with pytest.raises(TypeError, match="expected texts, got 3"):
        stfast.clean_terms([3], "species")


def test_the_papers_own_words_stay(real):
    meta = stfast.read_stimage_meta(real("stimage/meta_all_gene02122025.csv"))
    assert stfast.clean_terms(meta["species"], "species") == meta["species"].to_list()
    twice = {"lymphnode": "lymph node", "largeintestine": "large intestine"}
    expected = [twice.get(word, word) for word in meta["tissue"].str.to_lowercase()]
    assert stfast.clean_terms(meta["tissue"], "tissue") == expected


def test_the_command_writes_it_and_keeps_what_is_there(downloads, stfast_says, found, tmp_path):
    told = found("manifest", downloads, "-o", tmp_path / "m.csv")
    assert (told["slides"], told["problems"]) == (5, 0)
    assert told["technology"] == {"Visium": 3, "VisiumHD": 1, "ST": 1}
    with pytest.warns(UserWarning, match="license"):
        assert stfast.read_manifest(tmp_path / "m.csv").table.height == 5
    status, _, err = stfast_says("manifest", downloads, "-o", tmp_path / "m.csv")
    assert status == 1
    assert "expected no such file yet" in err
    (tmp_path / "empty").mkdir()
    status, _, _ = stfast_says("manifest", tmp_path / "empty", "-o", tmp_path / "e.csv")
    assert status == 1
    assert not (tmp_path / "e.csv").exists()
