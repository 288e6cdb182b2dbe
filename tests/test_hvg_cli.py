"""`stfast hvg`: the function's table in a file, its picture, and what it says."""

import warnings

import numpy as np
import polars as pl
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse

import stfast
from oracles import log_normalized, tree
from oracles_hvg import FLAVORS, RAW, heavy_tailed
from stfast import cli


@pytest.fixture
def command(capsys, monkeypatch):
    """Run `stfast hvg`: its exit status, what it printed, and its complaints."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["stfast", "hvg", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def files(tmp_path):
    """Two slides of counts as h5ad, with two batches each."""
    folder = tmp_path / "in"
    folder.mkdir()
    paths = []
    for at in range(2):
        slide = AnnData(sparse.csr_matrix(heavy_tailed(150, 80, at, 600)))
        slide.obs["section"] = ["a", "b"] * 75
        slide.var_names = [f"g{i}" for i in range(80)]
        slide.obs_names = [f"s{i}" for i in range(150)]
        paths.append(folder / f"slide{at}.h5ad")
        slide.write_h5ad(paths[-1])
    return paths


def read(path):
    return (pl.read_csv if path.suffix == ".csv" else pl.read_parquet)(path)


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_table_is_the_functions(flavor, suffix, command, files, tmp_path):
    output = tmp_path / f"genes{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = stfast.highly_variable_genes(files[0], flavor, 9, normalize=True)
    status, out, _ = command(files[0], "--flavor", flavor, "--n-top", 9, "-o", output)
    assert status == 0
    table = read(output)
    assert table["gene"].to_list() == list(expected.index)
    for column in expected:
        np.testing.assert_allclose(table[column].to_numpy(), expected[column], rtol=1e-12)
    best = [line.split()[0] for line in out.splitlines()[1:]]
    assert set(best) == set(expected.index[expected["highly_variable"]])


def test_several_slides_and_batches(command, files, tmp_path):
    output = tmp_path / "genes.parquet"
    for key in ("slide", "section"):
        assert command(*files, "--n-top", 9, "--batch-key", key, "-o", output)[0] == 0
        expected = stfast.highly_variable_genes(files, n_top_genes=9, batch_key=key)
        np.testing.assert_array_equal(
            read(output)["highly_variable_nbatches"], expected["highly_variable_nbatches"]
        )


def test_logarithms_are_taken_as_they_are(command, tmp_path):
    x = log_normalized(heavy_tailed(100, 80))
    AnnData(np.zeros_like(x), layers={"log": x}).write_h5ad(tmp_path / "a.h5ad")
    words = ["--flavor", "seurat", "--n-top", 5, "--log1p", "--layer", "log", "-o"]
    assert command(tmp_path / "a.h5ad", *words, tmp_path / "genes.csv")[0] == 0
    expected = stfast.highly_variable_genes(x, "seurat", 5)
    np.testing.assert_allclose(read(tmp_path / "genes.csv")["means"], expected["means"])


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_of_mean_and_variability(flavor, suffix, command, files, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / f"genes{suffix}"
    assert command(files[0], "--flavor", flavor, "--n-top", 9, "--plot", plot)[0] == 0
    if suffix == ".png":
        pixels = np.asarray(Image.open(plot).convert("RGB")).reshape(-1, 3)
        assert (np.abs(pixels.astype(int) - [0xC0, 0x39, 0x2B]).sum(axis=1) < 120).sum() > 20
    else:
        assert "<svg" in plot.read_text()


def test_what_is_said_is_a_line_each(command, files):
    status, _, err = command(files[0], "--n-top", 81)
    assert status == 0
    assert err == "stfast: n_top_genes: expected 81 genes with a score, got 80: all are chosen\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.h5ad"], "No such file"),
        (["IN", "--flavor", "best"], "flavor: expected one of"),
        (["IN", "--n-top", "0"], "n_top_genes: expected an integer of at least 1"),
        (["IN", "-o", "genes.xlsx"], "expected a name ending in .parquet or .csv"),
        (["IN", "--plot", "genes.xyz"], "xyz"),
        (["IN", "--plot", "gone/genes.png"], "gone"),
        (["IN", "--batch-key", "gone"], "batch_key: expected one of"),
        (["IN", "--flavor", "seurat", "--log1p"], "seurat: expected log1p data, got whole numbers"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(
    *, words, message, command, files, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    small = ["--n-top", "9"] if "--n-top" not in words else []
    status, out, err = command(*(str(files[0]) if w == "IN" else w for w in words), *small)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert message in err
    assert tree(tmp_path) == before


def test_flavors_that_take_raw_counts_do_not_mind_log1p(command, files):
    for flavor in RAW:
        words = [files[0], "--flavor", flavor, "--n-top", 9]
        assert command(*words, "--log1p")[1] == command(*words)[1]
