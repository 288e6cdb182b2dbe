"""Six slides of three technologies in one dataset, each byte against its source.

Pixels are cut by Pillow from the slide's picture, counts and positions are those that the
slide's own reader gives; the index is compared with the shards in ``test_build``.
"""

import io

import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy import sparse

import oracles
import oracles_readers as made
import stfast
from stfast import _spatial
from test_build import assert_members_are_rows, one_thread

__all__ = ["one_thread"]

SETTINGS = {"bin_size": 8, "size": 32, "hvg": "pearson:5", "tiles": "png"}


def write_st(folder, seed):
    """A legacy ST slide of 12 spots and 8 genes."""
    folder.mkdir()
    Image.fromarray(oracles.picture(170, 160, seed)).save(folder / "he.png")
    rng = np.random.default_rng(seed)
    rows = ["\t" + "\t".join(f"g{i}" for i in range(8))]
    places = [(x, y) for x in (5, 6, 7) for y in (4, 5, 6, 7)]
    rows += [f"{x}x{y}\t" + "\t".join(map(str, rng.poisson(3, 8))) for x, y in places]
    (folder / "counts.tsv").write_text("\n".join(rows) + "\n")
    return folder


def manifest_of(slides):
    return pl.DataFrame({"slide": list(slides), "path": [str(p) for p in slides.values()]})


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    folder = tmp_path_factory.mktemp("six")
    slides = {}
    for seed in (1, 2):
        hd = {"side_um": 64, "n_genes": 40, "mpp": 0.5, "seed": seed}
        slides[f"hd {seed}"] = stfast.synthesize_visium_hd(folder / f"hd{seed}", **hd)
        slides[f"visium{seed}"] = made.write_visium(
            folder / f"v{seed}/outs", seed=seed, full=seed == 1
        )
        slides[f"ST-{seed}"] = write_st(folder / f"st{seed}", seed)
    return manifest_of(slides)


@pytest.fixture(scope="module")
def built(six, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    report = stfast.build(six, out, **SETTINGS, shard_bytes=100_000, workers=1)
    assert not report.failed
    return out


def cutter(picture, size, span):
    """What cuts the tile around a centre: numpy's crop of the padded picture, Pillow's resize."""
    side = max(1, int(np.floor(span + 0.5)))
    padded = np.pad(picture, ((side, side), (side, side), (0, 0)), constant_values=255)

    def cut(center):
        left, top = (int(np.floor(c - side / 2 + 0.5)) + side for c in center)
        window = Image.fromarray(padded[top : top + side, left : left + side])
        return np.asarray(window.resize((size, size), Image.Resampling.BICUBIC))

    return cut


def assert_dataset_is_of(root, table, size):
    """Pixels, places, counts and names of all spots are those of their slides."""
    dataset = stfast.Dataset(root)
    index, counts = dataset.index.with_row_index("row"), dataset.counts
    shards = [p.read_bytes() for p in sorted((root / "tiles").iterdir())]
    seen = 0
    for slide, path in table.select("slide", "path").iter_rows():
        rows, adata = index.filter(slide=slide), stfast.read(path)
        assert sorted(rows["spot"]) == sorted(adata.obs_names)
        adata = adata[rows["spot"].to_list()]
        centers, span = _spatial.centers(adata), _spatial.spot_span(adata)
        assert np.array_equal(rows.select("x", "y").to_numpy(), centers)
        assert rows["r"].to_numpy() == pytest.approx(span / 2)
        cut = cutter(oracles.pixels(_spatial.image_path(adata)), size, span)
        for center, (shard, start, length) in zip(
            centers, rows.select("shard", "offset", "length").iter_rows(), strict=True
        ):
            with Image.open(io.BytesIO(shards[shard][start : start + length])) as tile:
                found = np.asarray(tile)
            assert np.array_equal(found, cut(center))
        columns = [dataset.genes.index(gene) for gene in adata.var_names]
        ours = counts[rows["row"].to_numpy()]
        assert (ours[:, columns] != sparse.csr_matrix(adata.X)).nnz == 0
        assert ours.sum() == adata.X.sum()
        assert np.array_equal(rows["n_counts"], np.asarray(adata.X.sum(axis=1)).ravel())
        seen += adata.n_obs
    assert seen == len(dataset)


def test_six_slides_of_three_technologies(six, built):
    assert_dataset_is_of(built, six, 32)
    assert_members_are_rows(built)


def test_real_st_slides(real, tmp_path):
    table = manifest_of({name: real(f"st/{name}") for name in ("micro", "mob11")})
    out = tmp_path / "out"
    report = stfast.build(table, out, **SETTINGS, workers=1)
    assert not report.failed
    assert_dataset_is_of(out, table, 32)
    assert_members_are_rows(out)
