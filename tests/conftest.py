"""What all tests share: hypothesis' profile, the real samples, and one small synthetic slide.

Hypothesis draws the same few examples every time, so that a red test stays red; set
``HYPOTHESIS_PROFILE=explore`` to look for new ones. Real files are never in the repository:
a test that wants one asks for ``real`` and is skipped, saying so, where they are missing.
"""

import json
import os
import sys
from pathlib import Path

import hypothesis
import pytest

import oracles
import stfast
from stfast import cli

hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile("explore", max_examples=500, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

DATA = Path(
    os.environ.get("STFAST_TEST_DATA") or Path(__file__).parent.parent.parent / "shared" / "data"
)
SQUARE = Path("binned_outputs/square_002um")


@pytest.fixture(scope="session")
def real():
    """Find a real sample by its path in the data folder, or skip."""

    def find(name):
        path = DATA / name
        if not path.exists():
            pytest.skip(f"no {name} in {DATA}: set STFAST_TEST_DATA")
        return path

    return find


@pytest.fixture(scope="session")
def slide(tmp_path_factory):
    """A synthetic Visium HD slide of 50 × 50 squares; read it, never write to it.

    50 is no multiple of 4, 8 or 16: the last bins are partial ones.
    """
    folder = tmp_path_factory.mktemp("hd") / "slide"
    return stfast.synthesize_visium_hd(folder, side_um=100, n_genes=60, mpp=0.5, seed=1)


@pytest.fixture(scope="session")
def squares(slide):
    """The slide's raw squares as scanpy reads them; copy before changing."""
    return oracles.squares_of(slide / SQUARE)


@pytest.fixture(scope="session")
def bins(slide):
    """The slide at 8 µm as stfast reads it; copy before changing."""
    return stfast.read(slide)


@pytest.fixture(scope="session")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    first = oracles.slide_with_picture(folder, 0)
    return [
        first,
        oracles.slide_with_picture(folder, 1, n=45, codec="JPEG"),
        oracles.slide_with_picture(folder, 2, n=1),
    ]


@pytest.fixture
def stfast_says(capsys, monkeypatch):
    """Run a command: its exit status, what it printed, and its complaints."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stfast", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def found(stfast_says):
    """Run a command with --json: the object it prints, after a quiet success."""

    def run(*words):
        status, out, err = stfast_says(*words, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return run
