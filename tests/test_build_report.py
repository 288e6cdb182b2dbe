"""What a build says of its slides: alignment, labels, and one page to look at in a browser."""

import html
import re
import shutil
import subprocess
import warnings

import anndata
import numpy as np
import polars as pl
import pytest
from PIL import Image

import stfast
from stfast.dataset import _composition
from stfast.dataset._report import write_report
from test_alignment import generated

EVIL = "<script>document.title='pwned'</script>"
SETTINGS = {"size": 16, "hvg": "pearson:4", "tiles": "jpeg"}


def written(folder, name, *, mirrored=False):
    """A generated slide as h5ad, its picture beside it."""
    adata, picture = generated(3, "ST", all_spots=True)
    pixels = picture[:, ::-1] if mirrored else picture
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.png")
    library = adata.uns["spatial"]["made"]
    library["metadata"]["source_image_path"] = str(folder / f"{name}.png")
    library["images"] = {}
    library["scalefactors"]["spot_diameter_fullres"] = 10.0
    adata.obs["label"] = "of its own"
    adata.write_h5ad(folder / f"{name}.h5ad")
    return str(folder / f"{name}.h5ad")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    paths = [written(folder, "good"), written(folder, "mirrored", mirrored=True)]
    labels = "".join(f"s{n},tumor\n" for n in range(5)) + "elsewhere,tumor\n"
    (folder / "labels.csv").write_text("spot,label\n" + labels)
    return pl.DataFrame(
        {
            "slide": ["good", "mirrored & co"],
            "path": paths,
            "annotation": [str(folder / "labels.csv"), None],
            "tissue": [EVIL, None],
            "title": ["Of mice & <b>men</b>", EVIL],
            "license": ["CC0", None],
        }
    )


@pytest.fixture(scope="module")
def built(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    assert not stfast.build(table, out, **SETTINGS).failed
    return out


def test_the_table_of_slides_says_what_was_checked(built):
    slides = pl.read_parquet(built / "slides.parquet")
    assert slides["alignment"].to_list() == ["ok", "misplaced"]
    assert slides["alignment_score"].sign().to_list() == [1, -1]
    assert slides["alignment_cause"].to_list() == ["", "the picture is mirrored left to right"]
    index = stfast.Dataset(built).index
    n = index.filter(slide="good").height
    told = slides.select("n_labelled", "n_excluded", "n_unmatched_spots", "n_unmatched_rows")
    assert told.rows() == [(5, 0, n - 5, 1), (None,) * 4]
    assert index.filter(slide="good")["label"].value_counts().sort("count").rows() == [
        ("tumor", 5), (None, n - 5)
    ]  # fmt: skip
    # A column that an h5ad brings along is no label of the dataset, and stays as it is.
    assert index.filter(slide="mirrored & co")["label"].null_count() == n
    stored = anndata.read_zarr(built / "slides/mirrored & co.zarr")
    assert set(stored.obs["label"]) == {"of its own"}
    assert sorted(p.name for p in (built / "report").iterdir()) == [
        "good.png",
        "mirrored & co.png",
    ]


def test_strict_stops_a_misplaced_slide_even_one_that_was_staged(table, built, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(built, out)
    report = stfast.build(table, out, **SETTINGS, strict=True)
    assert report.staged == []
    assert list(report.failed) == ["mirrored & co"]
    assert "the picture is mirrored left to right (score -" in report.failed["mirrored & co"]
    assert set(stfast.Dataset(out).index["slide"]) == {"good"}
    assert not (out / "report" / "mirrored & co.png").exists()
    assert stfast.build(table, out, **SETTINGS).failed == {}


def test_the_command_has_strict(table, tmp_path, stfast_says):
    table.write_csv(tmp_path / "m.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status, out, _ = stfast_says(
            "build", tmp_path / "m.csv", tmp_path / "out", "--size", 16, "--hvg", "pearson:4",
            "--strict",
        )  # fmt: skip
    assert status == 1
    assert "mirrored left to right" in out


def test_a_slide_that_cannot_be_checked_is_built(tmp_path):
    """Nine spots are too few to compare."""
    adata, picture = generated(3, "ST")
    few = adata[:9].copy()
    Image.fromarray(picture).save(tmp_path / "few.png")
    library = few.uns["spatial"]["made"]
    library["metadata"]["source_image_path"] = str(tmp_path / "few.png")
    library["scalefactors"]["spot_diameter_fullres"] = 10.0
    few.write_h5ad(tmp_path / "few.h5ad")
    table = pl.DataFrame({"slide": ["few"], "path": [str(tmp_path / "few.h5ad")]})
    assert not stfast.build(table, tmp_path / "out", **SETTINGS).failed
    slides = pl.read_parquet(tmp_path / "out/slides.parquet")
    assert slides["alignment"].to_list() == ["undecided"]
    assert "expected 10 spots in tissue or more, got 9" in slides["alignment_cause"][0]
    assert "not checked" in (tmp_path / "out/report.html").read_text()


# --- the page ----------------------------------------------------------------------------------


def test_the_page_has_what_was_found_and_nothing_from_elsewhere(built):
    page = (built / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(links) == 4
    assert [link for link in links if not link.startswith("data:")] == [
        "report/good.png",
        "report/mirrored%20%26%20co.png",
    ]
    assert "<script" not in page
    assert page.count(html.escape(EVIL)) == 2  # the title; the tissue, among its slide's facts
    assert html.escape(EVIL[:25]) in page  # the figure has room for its start
    assert "Of mice &amp; &lt;b&gt;men&lt;/b&gt;" in page
    for words in (
        "mirrored &amp; co: spots and picture do not agree: the picture is mirrored",
        "license: not said of 1 of 2 slides",
        "consent: not said of 2 of 2 slides",
        "good: rows of its annotation without a spot: 1",
        "5 spots labelled: tumor",
        '<span class="misplaced">misplaced</span>',
    ):
        assert words in page
    genes = stfast.Dataset(built).hvg_genes.filter(slide="good").sort("rank")["gene"].to_list()
    assert f"most variable: {', '.join(genes)}" in page


def test_the_page_is_the_same_whenever_it_is_written(built, tmp_path):
    shutil.copytree(built, tmp_path / "again")
    (tmp_path / "again/report.html").unlink()
    write_report(tmp_path / "again")
    assert (tmp_path / "again/report.html").read_bytes() == (built / "report.html").read_bytes()


def test_shares_are_those_of_the_paper(real):
    """STimage-1K4M's own: 1,149 slides and 4,293,195 spots by technology."""
    meta = stfast.read_stimage_meta(real("stimage/meta_all_gene02122025.csv"))
    slides = meta.rename({"tech": "technology", "spot_num": "n_spots"})
    found = _composition.shares(slides, "technology")
    rounded = found.select("value", pl.col("slides_share", "spots_share").round(3)).rows()
    assert rounded == [("Visium", 0.865, 0.544), ("VisiumHD", 0.003, 0.442), ("ST", 0.131, 0.014)]
    tissues = _composition.shares(slides, "tissue")
    assert tissues.height == 13
    assert tissues["value"][-1].endswith(" others")
    assert (tissues["slides"].sum(), tissues["spots"].sum()) == (1149, 4293195)


@pytest.mark.slow
def test_a_browser_shows_the_page_and_runs_nothing_in_it(built, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: apt install chromium")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1400",
               f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    page = f"file://{built / 'report.html'}"
    shot = tmp_path / "report.png"
    run = {"capture_output": True, "text": True, "timeout": 120}
    subprocess.run([*command, f"--screenshot={shot}", page], check=True, **run)
    told = subprocess.run([*command, "--dump-dom", page], check=True, **run).stdout
    assert "<title>out</title>" in told
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (1400, 1200, 3)
    # The bars of the figure, the tissue of the pictures and the red of the misplaced slide.
    for colour in ((0x3B, 0x6E, 0xA5), (0xE0, 0x91, 0x3A), (0xB3, 0x26, 0x1E)):
        assert (pixels == colour).all(axis=-1).sum() > 100
