"""The main job, small: from a slide that is made, and from slides of others, to a picture.

What its steps say they did is held against the functions they call.
"""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import oracles
import stfast
from conftest import SQUARE
from oracles import tree
from stfast.demo import Run, Step, run_demo

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

STEPS = ["make", "read", "aggregate", "filter", "hvg", "load", "draw"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo on a slide of 100 µm that it makes: its folder, what it reported, its answer."""
    folder = tmp_path_factory.mktemp("demo") / "deep" / "demo"
    told = []
    answer = run_demo(folder, side_um=100, size=32, batch_size=64, report=told.append)
    return folder, told, *answer


def shown(path):
    """The picture as an array; it must hold more than one colour and more than the slide."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    return pixels


def test_every_step_is_named_timed_and_told_in_order(made):
    _, told, steps, _ = made
    assert [step.name for step in steps] == STEPS
    assert told == steps
    for step in steps:
        assert step.seconds > 0
        assert step.amount > 0
        assert step.did
        assert step.throughput.endswith(f"{step.unit}/s")


def test_the_picture_is_drawn_and_nothing_else_is_left(made):
    folder, _, _, picture = made
    shown(picture)
    assert picture.parent == folder
    slide = next(path for path in folder.iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == sorted([slide.name, picture.name])


def test_the_steps_did_what_the_functions_do(made):
    """The spots are those of `stfast.read`: in tissue by every square of the grid."""
    folder, _, steps, _ = made
    slide = next(path for path in folder.iterdir() if path.is_dir())
    did = {step.name: step for step in steps}
    adata = stfast.read(slide)
    raw = stfast.read(slide, bin_size=2, raw=True)
    assert did["make"].amount == 2500
    assert did["read"].amount == did["aggregate"].amount == raw.X.nnz
    assert did["load"].amount == did["draw"].amount == adata.n_obs
    assert did["hvg"].amount == adata.X.nnz
    table = stfast.highly_variable_genes(adata, n_top_genes=128, inplace=False)
    for gene in table["highly_variable_rank"].nsmallest(3).index:
        assert gene in did["hvg"].did


def test_the_second_run_finds_the_slide(made):
    folder, _, steps, picture = made
    before = tree(folder)
    again, same = run_demo(folder, side_um=100, size=16, bin_size=16)
    assert [step.name for step in again] == STEPS[1:]
    assert same == picture
    assert tree(folder) == before
    assert {s.name: s for s in again}["load"].amount < {s.name: s for s in steps}["load"].amount


def test_the_picture_depends_on_gene_and_span_but_not_on_the_workers(slide, tmp_path):
    gene = stfast.read(slide).var_names[3]
    runs = {"one": {"workers": 1}, "two": {"workers": 2}, "other": {"gene": gene, "span_um": 40}}
    pictures = {
        name: shown(run_demo(tmp_path / name, slide=slide, size=16, **options)[1])
        for name, options in runs.items()
    }
    np.testing.assert_array_equal(pictures["one"], pictures["two"])
    assert (pictures["one"] != pictures["other"]).any()


def test_a_legacy_slide_runs_through_the_whole_main_job(real, tmp_path):
    steps, picture = run_demo(tmp_path, slide=real("st/micro"), size=32)
    assert [step.name for step in steps] == ["read", "filter", "hvg", "load", "draw"]
    adata = stfast.read(real("st/micro"))
    usable = (adata.obs["in_tissue"] == 1) & adata.obs["in_picture"]
    assert steps[-1].amount == usable.sum()
    shown(picture)
    assert tree(tmp_path) == [picture.name]


def test_mob11_runs_through_the_whole_main_job(real, tmp_path):
    steps, picture = run_demo(tmp_path, slide=real("st/mob11"), size=64)
    assert steps[-1].amount == 262
    assert "128 genes" in {step.name: step for step in steps}["hvg"].did
    shown(picture)


def test_what_is_left_out_is_said(tmp_path):
    """A made-up ST slide: two spots off the tissue, one off the picture."""
    Image.fromarray(oracles.picture(170, 160)).save(tmp_path / "he.png")
    x, y = np.divmod(np.arange(12), 3) + np.array([[2], [2]])
    names = [f"{a}x{b}" for a, b in zip(x, y, strict=True)]
    rng = np.random.default_rng(0)
    counts = pd.DataFrame(rng.integers(1, 9, (12, 3)), names, columns=["a", "b", "c"])
    counts.to_csv(tmp_path / "counts.tsv", sep="\t")
    spots = pd.DataFrame({"x": x, "y": y, "new_x": x, "new_y": y, "pixel_x": x * 25})
    spots["pixel_y"] = [*y[:-1] * 20, 900]
    spots["selected"] = [0, 0, *[1] * 10]
    spots.to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    steps, picture = run_demo(tmp_path / "out", slide=tmp_path, size=16)
    assert "9 in tissue; left out 2 off tissue, 1 off the picture" in steps[1].did
    shown(picture)


def test_tissue_is_told_by_the_grid_not_by_the_counts(slide, tmp_path):
    """The demo aggregates by itself; its bins in tissue must be the reader's all the same."""
    folder = shutil.copytree(slide, tmp_path / "copy")
    places = oracles.silence_tissue(folder / SQUARE, 4, 5)
    steps, _ = run_demo(tmp_path / "out", slide=folder, size=16)
    assert steps[-1].amount == stfast.read(folder).n_obs == len(places)


def test_a_run_that_cannot_be_is_refused_by_name(slide, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_demo(out, slide=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="gene: expected one of the slide's, got 'XIST1'"):
        run_demo(out, slide=slide, size=16, gene="XIST1")
    with pytest.raises(ValueError, match="bin_size: expected a multiple"):
        run_demo(out, slide=slide, bin_size=7)
    with pytest.raises(ValueError, match="span"):
        run_demo(out, slide=slide, span_um=-1)
    with pytest.raises(ValueError, match="size"):
        run_demo(out, slide=slide, size=0)
    assert tree(out) == []


def test_a_slide_that_could_not_be_made_is_not_found_later(tmp_path, monkeypatch):
    from stfast.synthetic import picture

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("stfast.synthetic.write_picture", fail)
    with pytest.raises(OSError, match="disk full"):
        run_demo(tmp_path, side_um=20)
    assert picture is not None
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("amount", "seconds", "said"),
    [
        (5, 2, "2.5 spots/s"),
        (3000, 2, "1.5 kspots/s"),
        (3e6, 2, "1.5 Mspots/s"),
        (4e9, 1, "4.0 Gspots/s"),
    ],
)
def test_throughput_is_said_in_words(amount, seconds, said):
    step = Step("a", "b", seconds, amount, "spots")
    assert step.throughput.replace(" ", "") == said.replace(" ", "")


def test_a_step_that_fails_is_not_reported():
    told = []
    run = Run(told.append)
    with pytest.raises(KeyError, match="broken"), run.step("read", "counts"):
        raise KeyError("broken")
    assert told == run.steps == []
