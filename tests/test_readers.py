"""Readers: Visium HD folders, against scanpy, pandas and Space Ranger's own rules.

A good folder is changed in one place for each fault that folders in the wild have, and the
exception must name the file, what was found and what was expected.
"""

import json
import re
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy import sparse

import oracles
from conftest import SQUARE
from oracles import assert_same, at_any_workers
from stfast import FormatError, read, read_visium_hd

RAW = SQUARE / "raw_feature_bc_matrix.h5"
POSITIONS = SQUARE / "spatial/tissue_positions.parquet"
FACTORS = SQUARE / "spatial/scalefactors_json.json"
HIRES = SQUARE / "spatial/tissue_hires_image.png"
PICTURE = Path("microscope_image/tissue_image.btf")


@pytest.fixture
def folder(slide, tmp_path):
    """A copy of the slide, to break."""
    return Path(shutil.copytree(slide, tmp_path / "copy"))


def assert_conventions(adata):
    """What scanpy's and squidpy's plots look for, and what formats.md 2.2 asks for."""
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    assert {"in_tissue", "array_row", "array_col"} <= set(adata.obs)
    assert all(adata.obs[c].dtype.kind == "i" for c in ("in_tissue", "array_row", "array_col"))
    xy = adata.obsm["spatial"]
    assert xy.shape == (adata.n_obs, 2)
    assert xy.dtype == np.float64
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    ((_, library),) = adata.uns["spatial"].items()
    assert set(library) == {"images", "scalefactors", "metadata"}
    assert library["scalefactors"]["spot_diameter_fullres"] > 0
    for name, pixels in library["images"].items():
        assert name in ("hires", "lowres")
        assert pixels.ndim == 3
        assert pixels.dtype == np.uint8
        assert library["scalefactors"][f"tissue_{name}_scalef"] > 0


# --- Visium HD ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "filtered"])
def test_squares_on_disk_are_read_as_scanpy_reads_them(slide, kind):
    found = at_any_workers(lambda n: read_visium_hd(slide, 2, raw=kind == "raw", workers=n))
    expected = oracles.squares_of(slide / SQUARE, kind=kind)
    assert (found.X != expected.X).nnz == 0
    assert found.X.dtype == np.int32
    assert list(found.obs_names) == list(expected.obs_names)
    assert list(found.var_names) == list(expected.var_names)
    for column in ("gene_ids", "feature_types", "genome"):
        assert list(found.var[column]) == list(expected.var[column])
    for column in expected.obs:
        np.testing.assert_array_equal(found.obs[column], expected.obs[column])
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    factors = json.loads((slide / FACTORS).read_text())
    assert found.uns["spatial"]["slide"]["scalefactors"] == factors
    assert_conventions(found)


@pytest.mark.parametrize("bin_size", [8, 6, 16, 100, 1000])
def test_bins_are_built_from_raw_squares_by_space_rangers_rule(slide, squares, bin_size):
    """Sums over all squares; in tissue if any square of the grid is, counted or not."""
    k = bin_size // 2
    found = at_any_workers(lambda n: read_visium_hd(slide, bin_size, workers=n))
    rows, cols = squares.obs["array_row"], squares.obs["array_col"]
    sums, bin_rows, bin_cols = oracles.binned(squares.X, rows, cols, k)
    tissue = oracles.bins_in_tissue(slide / SQUARE, k)
    keep = np.array([place in tissue for place in zip(bin_rows, bin_cols, strict=True)])
    assert (found.X != sums[keep]).nnz == 0
    np.testing.assert_array_equal(found.obs["array_row"], bin_rows[keep])
    np.testing.assert_array_equal(found.obs["array_col"], bin_cols[keep])
    assert (found.obs["in_tissue"] == 1).all()
    every = read_visium_hd(slide, bin_size, raw=True)
    assert (every.X != sums).nnz == 0
    np.testing.assert_array_equal(every.obs["in_tissue"], keep)
    assert_conventions(found)


def test_a_slide_is_read_at_8_um_unless_told_otherwise(slide, bins):
    assert_same(read_visium_hd(slide), bins)
    assert bins.uns["spatial"]["slide"]["scalefactors"]["bin_size_um"] == 8
    assert bins.uns["stfast"]["read_visium_hd"] == {"bin_size": 8, "raw": False}
    assert bins.obs_names[0].startswith("s_008um_")


def test_a_square_in_tissue_without_counts_puts_its_bin_in_tissue(folder):
    """The grid decides, not the matrix: off-tissue counts around such a square stay."""
    places = oracles.silence_tissue(folder / SQUARE, 4, 5)
    found = read(folder)
    assert found.obs[["array_row", "array_col"]].to_numpy().tolist() == [list(p) for p in places]
    assert found.X.sum() > 0


def test_an_existing_bin_size_is_taken_as_it_is(folder):
    """Counts of an 8 µm folder are Space Ranger's own: not rebuilt from the squares."""
    bins = read(folder, raw=True)
    target = folder / "binned_outputs/square_008um"
    (target / "spatial").mkdir(parents=True)
    shutil.copy(folder / RAW, target / "filtered_feature_bc_matrix.h5")
    with h5py.File(target / "filtered_feature_bc_matrix.h5", "r+") as file:
        group = file["matrix"]
        for name in ("barcodes", "shape", "indptr", "indices", "data"):
            del group[name]
        group["barcodes"] = bins.obs_names.to_numpy().astype("S")
        group["shape"] = bins.shape[::-1]
        group["indptr"], group["indices"] = bins.X.indptr, bins.X.indices
        group["data"] = bins.X.data * 3
    table = pl.from_pandas(bins.obs.reset_index(names="barcode"))
    x, y = bins.obsm["spatial"].T
    table.with_columns(pxl_row_in_fullres=y, pxl_col_in_fullres=x).write_parquet(
        target / "spatial/tissue_positions.parquet"
    )
    shutil.copy(folder / FACTORS, target / "spatial/scalefactors_json.json")
    found = read(folder)
    assert (found.X != bins.X * 3).nnz == 0
    assert sorted(found.uns["spatial"]["copy"]["images"]) == []


@pytest.mark.parametrize("below", [".", "binned_outputs", SQUARE])
@pytest.mark.parametrize("how", ["absolute", "relative", "from within"])
def test_the_folder_may_be_any_of_its_levels(slide, monkeypatch, below, how):
    path = slide / below
    if how == "relative":
        monkeypatch.chdir(slide.parent)
        path = path.relative_to(slide.parent)
    elif how == "from within":
        monkeypatch.chdir(path)
        path = Path()
    found = read(path, bin_size=16)
    assert found.X.sum() == read(slide, bin_size=16).X.sum()
    ((name, library),) = found.uns["spatial"].items()
    assert name == "slide"
    image = Path(library["metadata"]["source_image_path"])
    assert image.resolve() == (slide / PICTURE).resolve()
    assert found.obs["in_picture"].all()


def test_the_picture_may_be_given_or_missing(folder, tmp_path):
    other = tmp_path / "other.btf"
    (folder / PICTURE).rename(other)
    bare = read(folder).uns["spatial"]["copy"]["metadata"]
    assert bare["source_image"] == "hires"
    assert bare["source_image_path"].endswith("tissue_hires_image.png")
    given = read(folder, image=other)
    assert given.uns["spatial"]["copy"]["metadata"]["source_image_path"] == str(other)
    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        read(folder, image=tmp_path / "gone.tif")


def test_files_beside_the_picture_are_not_taken_for_it(folder):
    for name in ("README.txt", ".DS_Store", "alignment.json"):
        (folder / "microscope_image" / name).write_text("no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library = read(folder).uns["spatial"]["copy"]
    assert library["metadata"]["source_image_path"].endswith("tissue_image.btf")


def test_another_picture_is_noticed(folder, tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "wrong.png")
    with pytest.warns(UserWarning, match=r"wrong\.png: expected about \[.*got \[300, 400\]"):
        read(folder, image=tmp_path / "wrong.png")


def test_spots_outside_the_picture_are_flagged_not_dropped(folder):
    shift = pl.col("pxl_col_in_fullres") - 60
    pl.read_parquet(folder / POSITIONS).with_columns(pxl_col_in_fullres=shift).write_parquet(
        folder / POSITIONS
    )
    found = read(folder)
    outside = (found.obsm["spatial"] < 0).any(axis=1)
    assert outside.any()
    np.testing.assert_array_equal(found.obs["in_picture"], ~outside)


FOREIGN = {
    "float64 data": lambda m: m.update(data=m["data"].astype(np.float64)),
    "uint32 indices": lambda m: m.update(indices=m["indices"].astype(np.uint32)),
    "uint16 data": lambda m: m.update(data=m["data"].astype(np.uint16)),
    "big-endian data": lambda m: m.update(data=m["data"].astype(">i4")),
    "long strings": lambda m: m.update(barcodes=m["barcodes"].astype("S21").astype(object)),
}


@pytest.mark.parametrize("writer", FOREIGN)
def test_what_other_writers_write_is_read(folder, squares, writer):
    with h5py.File(folder / RAW, "r+") as file:
        group = file["matrix"]
        arrays = {name: group[name][:] for name in ("data", "indices", "indptr", "barcodes")}
        FOREIGN[writer](arrays)
        for name, array in arrays.items():
            del group[name]
            group.create_dataset(name, data=array, chunks=(100,), compression="gzip")
    found = read(folder, bin_size=2, raw=True)
    assert (found.X != squares.X).nnz == 0
    assert list(found.obs_names) == list(squares.obs_names)
    assert read(folder).X.sum() > 0


def test_gene_names_are_made_unique_and_ids_are_kept(folder):
    with h5py.File(folder / RAW, "r+") as file:
        names = file["matrix/features/name"]
        names[:3] = names[3]
    found = read(folder)
    assert found.var_names.is_unique
    assert found.var["gene_ids"].is_unique


def test_a_real_folder_of_another_program_is_read(real):
    path = real("visium_hd/seurat")
    found = read(path)
    expected = oracles.squares_of(path / "binned_outputs/square_008um", kind="filtered")
    assert (found.X != expected.X).nnz == 0
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert_conventions(found)
    assert read(real("visium_hd/visiumio"), bin_size=2).X.nnz == 0


# --- Visium HD, broken -------------------------------------------------------------------------


def cut(path, keep):
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:keep])


def say(path, content):
    return lambda folder: (folder / path).write_bytes(content)


def put(name, value):
    """Replace a data set of the matrix; a function is given the old one."""

    def change(folder):
        with h5py.File(folder / RAW, "r+") as file:
            new = value(file[name][()]) if callable(value) else value
            del file[name]
            if new is not None:
                file[name] = new

    return change


def at(place, value):
    return lambda array: np.concatenate([array[:place], [value], array[place + 1 :]])


def locate(**columns):
    return lambda folder: (
        pl.read_parquet(folder / POSITIONS)
        .with_columns(**columns)
        .write_parquet(folder / POSITIONS)
    )


def scale(**factors):
    def change(folder):
        known = json.loads((folder / FACTORS).read_text()) | factors
        (folder / FACTORS).write_text(json.dumps(known))

    return change


MATRIX, TABLE, JSON = RAW.name, POSITIONS.name, FACTORS.name
BROKEN = {
    "matrix empty": (cut(RAW, 0), MATRIX, "a 10x feature-barcode matrix"),
    "matrix cut": (cut(RAW, 3000), MATRIX, "truncated file"),
    "matrix cut late": (cut(RAW, -10), MATRIX, "truncated file"),
    "matrix of text": (say(RAW, b"barcode,gene"), MATRIX, "a 10x feature-barcode matrix"),
    "no matrix in it": (put("matrix", None), MATRIX, "a 10x feature-barcode matrix"),
    "matrix no group": (put("matrix", np.arange(3)), MATRIX, "a 10x"),
    "no data": (put("matrix/data", None), MATRIX, "a 10x"),
    "no features": (put("matrix/features", None), MATRIX, "a 10x"),
    "three sizes": (put("matrix/shape", [1, 2, 3]), MATRIX, "expected"),
    "a number for a shape": (put("matrix/shape", 5), MATRIX, "expected"),
    "negative shape": (put("matrix/shape", [60, -1]), MATRIX, "-1 barcodes by shape"),
    "numbered barcodes": (put("matrix/barcodes", lambda b: np.arange(len(b))), MATRIX, "expected"),
    "barcodes no text": (put("matrix/barcodes", at(1, b"\xff\xfe")), MATRIX, "expected"),
    "barcodes missing": (put("matrix/barcodes", lambda b: b[:-1]), MATRIX, "barcodes by shape"),
    "gene names missing": (put("matrix/features/name", [b"a", b"b"]), MATRIX, "expected"),
    "gene ids missing": (put("matrix/features/id", [b"a", b"b"]), MATRIX, "expected"),
    "indptr falls": (put("matrix/indptr", at(5, 10**6)), MATRIX, "indptr that does not rise"),
    "indptr negative": (put("matrix/indptr", at(5, -1)), MATRIX, "indptr that does not rise"),
    "indptr short": (put("matrix/indptr", lambda x: x[:-1]), MATRIX, "values in indptr"),
    "indices short": (put("matrix/indices", lambda x: x[:-1]), MATRIX, "values but"),
    "gene too large": (put("matrix/indices", at(5, 60)), MATRIX, r"numbers in 0\.\.60, got 60"),
    "gene negative": (put("matrix/indices", at(5, -1)), MATRIX, r"numbers in 0\.\.60, got -1"),
    "gene fractional": (put("matrix/indices", lambda x: x + 0.5), MATRIX, "expected"),
    "counts of text": (put("matrix/data", lambda x: x.astype("S")), MATRIX, "expected"),
    "counts NaN": (put("matrix/data", lambda x: x * np.nan), MATRIX, "expected"),
    "counts negative": (put("matrix/data", at(5, -1)), MATRIX, "expected"),
    "counts in rows": (put("matrix/data", lambda x: x[:, None]), MATRIX, "expected"),
    "positions of text": (say(POSITIONS, b"barcode,x"), TABLE, "expected a Parquet table"),
    "positions cut": (cut(POSITIONS, -100), TABLE, "expected a Parquet table"),
    "positions twice": (locate(barcode=pl.lit("s_002um_00000_00000-1")), TABLE, "expected"),
    "no such barcodes": (
        locate(barcode="x" + pl.col("barcode")),
        TABLE,
        r"a position for each of.*none for .*\(first 's_002um",
    ),
    "numbered positions": (locate(barcode=pl.lit(5)), TABLE, "expected"),
    "x is NaN": (locate(pxl_col_in_fullres=pl.lit(np.nan)), TABLE, "finite pixel positions"),
    "y is null": (locate(pxl_row_in_fullres=pl.lit(None, pl.Float64)), TABLE, "finite pixel"),
    "row of text": (locate(array_row=pl.lit("a")), TABLE, "expected"),
    "row is NaN": (locate(array_row=pl.lit(np.nan)), TABLE, "expected"),
    "row fractional": (locate(array_row=pl.col("array_row") + 0.5), TABLE, "expected"),
    "tissue is null": (locate(in_tissue=pl.lit(None, pl.Int64)), TABLE, "expected"),
    "factors of text": (say(FACTORS, b"{"), JSON, "expected JSON"),
    "factors of bytes": (say(FACTORS, b"\xff\xfe\0"), JSON, "expected JSON"),
    "factors a list": (say(FACTORS, b"[]"), JSON, "Space Ranger's scale factors, got list"),
    "factors of Loupe": (say(FACTORS, b'{"checksum": 1}'), JSON, r"got \['checksum'\]"),
    "factor of text": (scale(tissue_hires_scalef="a"), JSON, "expected"),
    "factor zero": (scale(tissue_hires_scalef=0), JSON, "expected"),
    "factor negative": (scale(spot_diameter_fullres=-1), JSON, "expected"),
    "overview cut": (cut(HIRES, 200), HIRES.name, "expected a picture"),
    "overview of text": (say(HIRES, b"x"), HIRES.name, "expected a picture"),
    "picture cut": (cut(PICTURE, 200), PICTURE.name, "expected an image header"),
    "picture of text": (say(PICTURE, b"hello"), PICTURE.name, "expected a TIFF, JPEG, PNG"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_names_the_file_and_the_fault(folder, fault):
    change, name, message = BROKEN[fault]
    change(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The core names the file last.
        name = re.escape(name)
        with pytest.raises(FormatError, match=f"{name}: .*{message}|{message}.*{name}"):
            read(folder)


@pytest.mark.parametrize("lost", [RAW, POSITIONS, FACTORS], ids=lambda p: p.name)
def test_a_missing_file_is_named(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(lost))):
        read(folder)


def test_a_table_without_a_column_is_told_which(folder):
    pl.read_parquet(folder / POSITIONS).drop("array_row").write_parquet(folder / POSITIONS)
    with pytest.raises(FormatError, match=rf"{TABLE}: expected columns \['array_row'\]"):
        read(folder)


@pytest.mark.parametrize("bin_size", [7, 3, 1, 0, -8, np.nan, 8.5, "8", None])
def test_a_bin_size_that_is_no_multiple_raises(slide, bin_size):
    with pytest.raises(ValueError, match="bin_size: expected a"):
        read(slide, bin_size=bin_size)


def test_a_whole_float_is_a_bin_size(slide, bins):
    assert_same(read(slide, bin_size=8.0).X, bins.X)


def test_what_is_no_slide_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_visium_hd(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"expected a Visium HD folder .* got an empty folder"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FormatError, match=r"expected a Visium HD folder .* got notes\.txt"):
        read(tmp_path)
    with pytest.raises(FormatError, match=r"notes\.txt: expected .* got a file"):
        read(tmp_path / "notes.txt")
    with pytest.raises(FormatError, match=r"expected square_.*um folders, got none"):
        read_visium_hd(tmp_path)


def test_no_workers_are_too_few(slide):
    with pytest.raises(ValueError, match="workers: expected an integer of at least 1, got 0"):
        read(slide, workers=0)
