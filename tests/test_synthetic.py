"""The synthetic Visium HD slide: its files, its determinism, and that it is true to itself.

The oracles are others' readers (scanpy, tifffile, Pillow, polars), the model's
own map from squares to pixels, and the picture itself, in which tissue must lie
where the counts say it lies.
"""

import io
import json
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image
from scipy import sparse, stats

from stfast.synthetic import HOUSEKEEPING, MARKERS, picture, synthesize_visium_hd
from stfast.synthetic.counts import invent_genes
from stfast.synthetic.layout import lay_out
from stfast.synthetic.tissue import REGIONS, grow_tissue

SIDE_UM, GENES, UMI, MPP, SEED = 160.0, 300, 20.0, 0.37, 3
DEFAULTS = {"n_genes": GENES, "umi_per_square": UMI, "seed": SEED, "mpp": MPP}
SQUARE = Path("binned_outputs/square_002um")
RAW, FILTERED = (SQUARE / f"{kind}_feature_bc_matrix.h5" for kind in ("raw", "filtered"))
POSITIONS = SQUARE / "spatial/tissue_positions.parquet"
PICTURE = Path("microscope_image/tissue_image.btf")


def synthesize(folder, side_um=SIDE_UM, **changes):
    return synthesize_visium_hd(folder, side_um=side_um, **DEFAULTS | changes)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return synthesize(tmp_path_factory.mktemp("synthetic") / "slide")


@pytest.fixture(scope="module")
def layout():
    return lay_out(SIDE_UM, MPP)


@pytest.fixture(scope="module")
def tissue(layout):
    return grow_tissue(layout, SIDE_UM, SEED)


@pytest.fixture(scope="module")
def painter(layout, tissue):
    return picture.set_up_painter(layout, tissue)


@pytest.fixture(scope="module")
def painted(layout, painter):
    """The picture before JPEG."""
    across, down = (-(-side // picture.TILE) for side in (layout.width, layout.height))
    rows = [
        np.hstack([painter.tile(row, column) for column in range(across)]) for row in range(down)
    ]
    return np.vstack(rows)[: layout.height, : layout.width].astype(float)


@pytest.fixture(scope="module")
def positions(slide):
    return pl.read_parquet(slide / POSITIONS)


@pytest.fixture(scope="module")
def pixels(slide):
    return tifffile.imread(slide / PICTURE)


def counts_of(path):
    """Matrix (squares, genes), barcodes and symbols, with h5py alone."""
    with h5py.File(path) as file:
        group = file["matrix"]
        parts = (group["data"][:], group["indices"][:], group["indptr"][:])
        names = group["features/name"][:].astype(str)
        barcodes = group["barcodes"][:].astype(str)
        shape = tuple(group["shape"][:][::-1])
    return sparse.csr_matrix(parts, shape=shape), barcodes, names


def centres(positions):
    return tuple(positions[f"pxl_{axis}_in_fullres"].to_numpy() for axis in ("col", "row"))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("workers", ["1", "2", "5"])
def test_same_seed_gives_the_same_bytes_for_any_number_of_threads(
    slide, tmp_path, monkeypatch, workers
):
    monkeypatch.setenv("STFAST_WORKERS", workers)
    assert contents(synthesize(tmp_path / "again")) == contents(slide)


def test_another_seed_gives_another_slide(slide, pixels, tmp_path):
    other = synthesize(tmp_path / "other", seed=SEED + 1)
    assert not np.array_equal(tifffile.imread(other / PICTURE), pixels)
    ours, theirs = (counts_of(folder / RAW) for folder in (slide, other))
    assert ours[0].shape != theirs[0].shape or (ours[0] != theirs[0]).nnz
    assert not np.array_equal(ours[2], theirs[2])


def test_a_tile_is_the_same_painted_alone_as_in_the_file(slide, layout, painter):
    with tifffile.TiffFile(slide / PICTURE) as tiff:
        page, tiles = tiff.pages.first, list(picture.tiles_of(layout))
        assert len(page.dataoffsets) == len(tiles) > 1
        for at in (len(tiles) - 1, 0):
            tiff.filehandle.seek(page.dataoffsets[at])
            stored = tiff.filehandle.read(page.databytecounts[at])
            encoded = io.BytesIO()
            tile = Image.fromarray(painter.tile(*tiles[at]))
            tile.save(encoded, "JPEG", quality=90, subsampling="4:2:0")
            assert stored == encoded.getvalue()


def test_neighbouring_tiles_meet_without_a_seam(painted):
    """Across a seam pixels differ no more than across other columns."""
    steps = np.abs(np.diff(painted, axis=1)).mean(axis=(0, 2))
    assert steps[picture.TILE - 1] < 1.5 * np.median(steps[picture.TILE - 30 : picture.TILE + 30])


@pytest.mark.parametrize(
    ("path", "packing", "barcode", "text"),
    [(RAW, (65_536, 1), "S45", "S256"), (FILTERED, (80_000, 4), "S21", None)],
)
def test_layout_is_that_of_each_writer(slide, path, packing, barcode, text):
    with h5py.File(slide / path) as file:
        group = file["matrix"]
        columns = [group[name] for name in ("data", "indices", "indptr", "shape", "barcodes")]
        assert [column.dtype for column in columns] == ["<i4", "<i8", "<i8", "<i4", barcode]
        features = group["features"]
        assert set(features) == {"id", "name", "feature_type", "genome", "_all_tag_keys"}
        for column in [*columns, *features.values()]:
            assert (*column.chunks, column.compression_opts) == packing
            assert (column.compression, column.shuffle) == ("gzip", True)
            assert column.maxshape == (None,)
        for column in features.values():
            assert column.dtype == (text or f"S{max(map(len, column[:]))}")
        assert list(features["_all_tag_keys"]) == [b"genome"]
        assert set(features["feature_type"][:]) == {b"Gene Expression"}
        assert (file.attrs["filetype"], file.attrs["version"]) == ("matrix", 2)
        assert int(file.attrs["software_version"].split(".")[0]) >= 4
        assert {"chemistry_description", "library_ids", "original_gem_groups"} < set(file.attrs)


@pytest.mark.parametrize("path", [RAW, FILTERED])
def test_matrix_is_canonical_and_scanpy_reads_the_same(slide, path):
    counts, barcodes, names = counts_of(slide / path)
    assert counts.has_canonical_format
    assert counts.data.min() > 0
    assert np.diff(counts.indptr).min() > 0
    assert counts.shape == (barcodes.size, names.size) == (barcodes.size, GENES)
    assert (np.sort(barcodes) == barcodes).all()
    assert len(set(names)) == GENES
    adata = pytest.importorskip("scanpy").read_10x_h5(slide / path)
    assert (counts != adata.X).nnz == 0
    assert list(adata.obs_names) == list(barcodes)
    assert list(adata.var_names) == list(names)
    assert adata.var["gene_ids"].str.fullmatch(r"ENSG\d{11}").all()


def test_filtered_is_raw_within_the_tissue(slide, positions):
    raw, raw_barcodes, _ = counts_of(slide / RAW)
    filtered, barcodes, _ = counts_of(slide / FILTERED)
    within = set(positions.filter(pl.col("in_tissue") == 1)["barcode"])
    keep = np.array([barcode in within for barcode in raw_barcodes])
    assert 0 < keep.sum() < keep.size < positions.height
    assert list(raw_barcodes[keep]) == list(barcodes)
    assert (raw[keep] != filtered).nnz == 0
    squares = len(within)
    assert filtered.sum() / squares == pytest.approx(UMI, rel=0.05)
    assert 0.005 * UMI < raw[~keep].sum() / (positions.height - squares) < 0.1 * UMI


def test_markers_are_enriched_in_their_own_region(slide, positions, tissue):
    counts, barcodes, names = counts_of(slide / FILTERED)
    place = {barcode: i for i, barcode in enumerate(positions["barcode"])}
    at = positions[[place[barcode] for barcode in barcodes]]
    x, y = ((pixel * MPP).astype(np.float32) for pixel in centres(at))
    fields = tissue.at(x, y, ("depth", "gland", "follicle"))
    region = np.argmax(tissue.shares(*fields), axis=0)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    for index, name in enumerate(REGIONS):
        own = np.asarray(counts[:, np.isin(names, MARKERS[name])].sum(axis=1)).ravel()
        here = region == index
        assert here.sum() > 50
        rate, elsewhere = (own[some].sum() / totals[some].sum() for some in (here, ~here))
        assert rate > 0.07
        assert rate > 8 * elsewhere


def test_genes_come_as_often_as_they_are_abundant(slide):
    counts, _, names = counts_of(slide / FILTERED)
    share = counts[:, np.isin(names, HOUSEKEEPING)].sum() / counts.sum()
    assert share == pytest.approx(0.12, abs=0.01)
    genes = invent_genes(18_000, 0)
    for deck, profile in zip(genes.decks(), genes.profiles, strict=True):
        cards = np.bincount(deck, minlength=18_000)
        np.testing.assert_allclose(cards, profile * deck.size, atol=1.01)
        assert np.sort(profile)[-180:].sum() > 0.25  # a heavy tail


def test_positions_hold_the_whole_grid_by_an_exact_affine(slide, positions, layout):
    n = layout.squares
    assert positions.schema == {
        "barcode": pl.String,
        "in_tissue": pl.UInt8,
        "array_row": pl.UInt32,
        "array_col": pl.UInt32,
        "pxl_row_in_fullres": pl.Float64,
        "pxl_col_in_fullres": pl.Float64,
    }
    assert positions.height == n * n == 80 * 80
    row, column = (positions[f"array_{axis}"].to_numpy() for axis in ("row", "col"))
    np.testing.assert_array_equal(row * n + column, np.arange(n * n))
    assert positions["barcode"][n + 2] == "s_002um_00001_00002-1"
    x, y = centres(positions)
    expected = layout.affine @ np.stack([column, row, np.ones(n * n)])
    np.testing.assert_allclose([x, y], expected, rtol=0, atol=1e-9)
    linear = layout.affine[:, :2]
    assert np.linalg.det(linear) == pytest.approx(-((2 / MPP) ** 2))
    np.testing.assert_allclose(linear @ linear.T, np.eye(2) * (2 / MPP) ** 2, atol=1e-9)
    provenance = json.loads((slide / "stfast.json").read_text())
    np.testing.assert_array_equal(provenance["affine_array_colrow_to_pixel_xy"], layout.affine)


def test_parquet_is_one_zstd_row_group(slide):
    metadata = pytest.importorskip("pyarrow.parquet").ParquetFile(slide / POSITIONS).metadata
    assert metadata.num_row_groups == 1
    codecs = {metadata.row_group(0).column(i).compression for i in range(metadata.num_columns)}
    assert codecs == {"ZSTD"}


@pytest.mark.parametrize("side_um", [3.0, 160.0, 6700.0])
def test_every_square_lies_whole_within_the_picture(side_um):
    layout = lay_out(side_um, 0.27376)
    ends = np.array([-0.5, layout.squares - 0.5])
    rows, columns = (a.ravel() for a in np.meshgrid(ends, ends))
    x, y = layout.pixels(rows, columns)
    assert 0 < x.min() < x.max() < layout.width
    assert 0 < y.min() < y.max() < layout.height
    assert max(layout.width, layout.height) < 1.08 * side_um / 0.27376 + 45
    assert layout.lowres_factor % layout.hires_factor == 0
    for factor, longest in ((layout.hires_factor, 6000), (layout.lowres_factor, 600)):
        assert -(-max(layout.width, layout.height) // factor) <= longest


def test_picture_is_a_bigtiff_of_jpeg_tiles(slide, layout):
    with tifffile.TiffFile(slide / PICTURE) as tiff:
        page = tiff.pages.first
        assert tiff.is_bigtiff
        assert len(tiff.pages) == 1
        assert page.shape == (layout.height, layout.width, 3)
        assert (page.tilelength, page.tilewidth) == (256, 256)
        assert page.compression == tifffile.COMPRESSION.JPEG
        assert page.photometric == tifffile.PHOTOMETRIC.YCBCR
        assert page.tags["YCbCrSubSampling"].value == (2, 2)
        assert page.tags["ResolutionUnit"].value.name == "CENTIMETER"
        for axis in "XY":
            top, bottom = page.tags[f"{axis}Resolution"].value
            assert 1e4 / (top / bottom) == pytest.approx(MPP, rel=1e-6)


def test_scale_factors_fit_the_pictures(slide, layout):
    factors = json.loads((slide / SQUARE / "spatial/scalefactors_json.json").read_text())
    assert factors["spot_diameter_fullres"] == factors["bin_size_um"] / MPP
    assert factors["microns_per_pixel"] == MPP
    assert {"regist_target_img_scalef", "fiducial_diameter_fullres"} < set(factors)
    for kind in ("hires", "lowres"):
        with Image.open(slide / SQUARE / f"spatial/tissue_{kind}_image.png") as image:
            full = (layout.width, layout.height)
            for small, large in zip(image.size, full, strict=True):
                assert small == -(-large // round(1 / factors[f"tissue_{kind}_scalef"]))


def test_overviews_are_means_of_boxes(slide, layout, painted):
    assert picture.TILE % layout.hires_factor  # boxes straddle tiles
    for kind, k in (("hires", layout.hires_factor), ("lowres", layout.lowres_factor)):
        with Image.open(slide / SQUARE / f"spatial/tissue_{kind}_image.png") as image:
            overview = np.asarray(image, float)
        for y, x in np.ndindex(overview.shape[:2]):
            box = painted[y * k : (y + 1) * k, x * k : (x + 1) * k]
            assert np.abs(overview[y, x] - box.mean(axis=(0, 1))).max() <= 0.5 + 1e-9


def stain_at(pixels, x, y):
    """Largest minus smallest colour at squares' pixels: stain, not glass."""
    i, j = np.clip(y, 0, pixels.shape[0] - 1), np.clip(x, 0, pixels.shape[1] - 1)
    return np.ptp(pixels[i.astype(int), j.astype(int)].astype(int), axis=1)


def auc(values, positive):
    pairs = positive.sum() * (~positive).sum()
    return stats.mannwhitneyu(values[positive], values[~positive]).statistic / pairs


def test_tissue_is_stained_and_glass_is_not(positions, pixels):
    x, y = centres(positions)
    tissue = positions["in_tissue"].to_numpy() == 1
    assert 0.4 < tissue.mean() < 0.9
    placed = auc(stain_at(pixels, x, y), tissue)
    assert placed > 0.95
    width, height = pixels.shape[1], pixels.shape[0]
    others = [(width - x, y), (x, height - y), (width - x, height - y), (y, x), (height - y, x)]
    assert max(auc(stain_at(pixels, *other), tissue) for other in others) < placed - 0.1
    assert pixels[:8].mean() > 235


def test_counts_lie_where_the_stain_is(slide, positions, pixels):
    """The totals themselves, which know nothing of in_tissue, pick the placement."""
    counts, barcodes, _ = counts_of(slide / RAW)
    totals = dict(zip(barcodes, np.asarray(counts.sum(axis=1)).ravel(), strict=True))
    total = np.array([totals.get(barcode, 0) for barcode in positions["barcode"]])
    x, y = centres(positions)
    placed, flipped = (
        stats.spearmanr(total, stain_at(pixels, across, y)).statistic
        for across in (x, pixels.shape[1] - x)
    )
    assert placed > max(0.5, flipped + 0.2)


def test_nuclei_are_many_in_follicles_and_few_in_fat(layout, tissue, pixels):
    """Share of dark pixels, by the region that the model has there."""
    x, y = (
        ((np.arange(size) + 0.5) * MPP).astype(np.float32) for size in (layout.width, layout.height)
    )
    inside, depth, gland, follicle = tissue.window(x, y, ("inside", "depth", "gland", "follicle"))
    region = np.argmax(tissue.shares(depth, gland, follicle), axis=0)
    dark = pixels.max(axis=2) < 150
    share = {
        name: dark[(region == index) & (inside > 2)].mean() for index, name in enumerate(REGIONS)
    }
    assert share["lymphoid"] > share["stroma"] > share["adipose"]
    assert share["epithelium"] > share["muscle"]
    assert not dark[inside < -6].any()


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(picture, "_jpeg", fail)
    with pytest.raises(OSError, match="disk full"):
        synthesize(tmp_path / "slide", side_um=20.0)
    assert not list(tmp_path.iterdir())


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=tmp_path.name):
        synthesize(tmp_path)
    with pytest.raises(FileExistsError, match=r"note\.txt"):
        synthesize(tmp_path / "note.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(("side_um", "squares"), [(3.0, 2), (7.0, 4), (61.0, 30)])
def test_tiny_slides_are_whole(tmp_path, side_um, squares):
    folder = tmp_path / "slide"
    folder.mkdir()  # an empty folder may be there
    assert synthesize(str(folder), side_um=side_um, n_genes=38, mpp=0.27376) == folder
    assert pl.read_parquet(folder / POSITIONS).height == squares**2
    assert counts_of(folder / RAW)[0].shape[1] == 38
    assert tifffile.imread(folder / PICTURE).ndim == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side_um": 0.0}, "side_um: expected a positive number"),
        ({"side_um": float("nan")}, "side_um: expected a positive number"),
        ({"side_um": 2.9}, "side_um: expected 3 to 6700 µm, got 2.9"),
        ({"side_um": 6700.1}, "side_um: expected 3 to 6700 µm, got 6700.1"),
        ({"n_genes": 37}, "n_genes: expected an integer of at least 38, got 37"),
        ({"n_genes": 300.5}, "n_genes: expected an integer"),
        ({"mpp": 0.0}, "mpp: expected a positive number"),
        ({"mpp": float("inf")}, "mpp: expected a positive number"),
        ({"mpp": 0.01}, "mpp: expected 0.05 to 10 µm per pixel, got 0.01"),
        ({"umi_per_square": 1e6}, "umi_per_square: expected 1e-06 to 500 molecules"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
    ],
)
def test_bad_input_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "slide", **changes)
    assert not list(tmp_path.iterdir())
