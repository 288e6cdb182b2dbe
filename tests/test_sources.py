"""Sources: what needs no torch, and what the loader asks of whatever it is given."""

import subprocess
import sys

import numpy as np
import pytest

import stfast
from oracles import picture
from oracles_dataset import write_dataset
from stfast.sources import Spots
from stfast.sources.genes import DenseGenes


@pytest.fixture(scope="module")
def root(slides, tmp_path_factory):
    tiles = np.stack([picture(16, 16, seed=n) for n in range(sum(a.n_obs for a in slides))])
    root = tmp_path_factory.mktemp("sources") / "built"
    write_dataset(root, slides, tiles)
    return root


def test_a_dataset_gives_counts_and_tiles_without_torch(root, slides):
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np, stfast
built = stfast.Dataset({str(root)!r})
source = built.source("counts")
out = np.empty((1, 16, 16, 3), np.uint8)
source.cut(np.array([3]), out, 1, lenient=False, look=lambda n: None)
print(int(built.counts.sum()), built.counts.shape[1], int(out.astype(int).sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total = int(sum(a.X.sum() for a in slides))
    pixels = int(picture(16, 16, seed=3).astype(int).sum())
    assert done.stdout.split() == [str(total), str(slides[0].n_vars), str(pixels)]


def test_the_loader_takes_whatever_gives_a_source():
    """A library's own store needs one method, and no class of ours."""
    tiles = np.stack([picture(8, 8, seed=n) for n in range(5)])

    class Store:
        spots = Spots(
            np.zeros(5, np.int32), np.zeros((5, 2), np.float32), np.full(5, -1), ["a"], []
        )
        genes = DenseGenes(["g"], np.arange(5, dtype=np.float32)[:, None])
        size = 8

        def source(self, genes=None):
            return self

        def cut(self, rows, out, workers, *, lenient, look):
            out[:] = tiles[rows]
            return []

    loader = stfast.TileLoader(Store(), batch_size=2, shuffle=False, device="cpu")
    batches = list(loader)
    np.testing.assert_array_equal(np.concatenate([b.image for b in batches]), tiles)
    np.testing.assert_array_equal(np.concatenate([b.genes for b in batches])[:, 0], np.arange(5))
