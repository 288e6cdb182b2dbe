"""Visium HD: bins built from a file that is never held, cells, nuclei, odd folders.

The rule is checked against scipy's product and the whole grid's tissue for every factor of
the issue, on grids whose sides are no multiples of them.
"""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pytest

import oracles
import oracles_readers as made
from oracles import assert_canonical, assert_same, at_any_workers
from stfast import FormatError, _core, _stored, aggregate_bins, read, read_visium_hd
from stfast.h5 import Dataset

SQUARE = "binned_outputs/square_002um"


def tissue(rows, cols, seed=0):
    """A blob, and single squares far from it."""
    rng = np.random.default_rng(seed)
    r, c = np.indices((rows, cols))
    blob = (r - rows / 2) ** 2 + (c - cols / 3) ** 2 < (min(rows, cols) / 3) ** 2
    return blob | (rng.random((rows, cols)) < 0.002)


def check_rule(folder, matrix, places, mask, factor, **options):
    """Compare with scipy's product; bins are in tissue if any square of the grid is."""
    sums, rows, cols = oracles.binned(matrix, places[:, 0], places[:, 1], factor)
    inside = {tuple(place) for place in np.argwhere(mask) // factor}
    keep = np.array([place in inside for place in zip(rows, cols, strict=True)])
    every = read_visium_hd(folder, 2 * factor, raw=True, **options)
    assert every.X.sum() == matrix.sum()
    assert (every.X != sums).nnz == 0
    assert_canonical(every.X)
    np.testing.assert_array_equal(every.obs["in_tissue"], keep)
    np.testing.assert_array_equal(every.obs["array_row"], rows)
    np.testing.assert_array_equal(every.obs["array_col"], cols)
    found = at_any_workers(lambda n: read_visium_hd(folder, 2 * factor, workers=n, **options))
    assert (found.X != sums[keep]).nnz == 0
    assert (found.obs["in_tissue"] == 1).all()
    np.testing.assert_array_equal(found.obs["array_row"], rows[keep])
    size = f"s_{2 * factor:03}um_"
    names = [f"{size}{r:05}_{c:05}-1" for r, c in zip(rows[keep], cols[keep], strict=True)]
    assert list(found.obs_names) == names
    number = pd.Series(list(zip(*(places // factor).T, strict=True))).value_counts()
    expected = [number[place] for place in zip(rows[keep], cols[keep], strict=True)]
    assert found.obs["n_squares"].tolist() == expected
    return found


@pytest.mark.parametrize("factor", [2, 4, 5, 8, 25, 3350])
@pytest.mark.parametrize("style", ["rust", None])
def test_bins_follow_space_rangers_rule(tmp_path, factor, style, monkeypatch):
    mask = tissue(103, 87)
    monkeypatch.setattr(_stored, "STRETCH", 3000)
    folder, matrix, places = made.write_squares(tmp_path / "hd", mask, style=style)
    found = check_rule(folder, matrix, places, mask, factor)
    factors = next(iter(found.uns["spatial"].values()))["scalefactors"]
    assert factors["bin_size_um"] == 2 * factor
    assert factors["spot_diameter_fullres"] == pytest.approx(7.1 * factor)
    assert factors["microns_per_pixel"] == 2 / 7.1
    assert factors["fiducial_diameter_fullres"] == made.VISIUM_FACTORS["fiducial_diameter_fullres"]


def test_bins_are_the_same_when_a_stretch_ends_within_them(tmp_path):
    """More rows than one step, so that open bins are carried over between stretches."""
    mask = tissue(150, 130)
    folder, matrix, places = made.write_squares(tmp_path / "hd", mask, genes=8)
    path = folder / SQUARE / "raw_feature_bc_matrix.h5"
    for factor in (4, 75, 150):
        bins = _core.assign_bins(*places.T.astype(np.int64).copy(), factor, 1)
        groups, n = bins[2], len(bins[0])
        expected = _core.sum_groups(
            (matrix.data, matrix.indices, matrix.indptr, matrix.shape[1]), groups, n, 1
        )
        with h5py.File(path) as file:
            stored = [Dataset(file[f"matrix/{name}"], 1).chunks for name in ("data", "indices")]
            for stretch in (1, 5000, 2**40):
                csr = (*stored, matrix.indptr.astype(np.int64), 8, True, stretch)
                for workers in oracles.WORKERS:
                    found = _core.sum_stored(csr, groups, n, "int32", workers)
                    for one, other in zip(found, expected, strict=True):
                        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("order", ["shuffled", "reversed", "by column"])
def test_squares_in_any_order_are_summed_right(tmp_path, order, monkeypatch):
    monkeypatch.setattr(_stored, "STRETCH", 1000)
    mask = tissue(120, 90)
    folder, matrix, places = made.write_squares(tmp_path / "hd", mask, genes=8)
    path = folder / SQUARE / "raw_feature_bc_matrix.h5"
    n = len(places)
    permutation = {
        "shuffled": np.random.default_rng(0).permutation(n),
        "reversed": np.arange(n)[::-1],
        "by column": np.lexsort((places[:, 0], places[:, 1])),
    }[order]
    with h5py.File(path) as file:
        cells = file["matrix/barcodes"][:][permutation]
    path.unlink()
    made.write_10x(path, matrix[permutation], cells)
    for factor in (4, 25):
        check_rule(folder, matrix, places, mask, factor)


def test_a_stretch_of_more_than_two_to_the_31_counts_is_skipped_when_unwanted(tmp_path):
    """Indptr stays 64-bit: rows beyond 2^31 counts are found, on a file that holds few."""
    n, genes, far = 3 * 4096, 10, 2**31 + 65_536
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, dtype in (("data", "i4"), ("indices", "i8")):
            a = file.create_dataset(name, (far + 6,), dtype, chunks=(65_536,), compression="gzip")
            a[:4] = [1, 2, 3, 4] if name == "data" else [0, 1, 2, 3]
            a[far:] = [5, 6, 7, 8, 9, 10] if name == "data" else [4, 5, 6, 7, 8, 9]
    starts = np.zeros(n + 1, np.int64)
    starts[1:] = 4
    starts[4096 + 100 :] = far
    starts[2 * 4096 + 7 :] = far + 6
    groups = np.zeros(n, np.int64)
    groups[4096 : 2 * 4096] = -1
    groups[2 * 4096 :] = 1
    with h5py.File(tmp_path / "a.h5") as file:
        stored = [Dataset(file[name], 2).chunks for name in ("data", "indices")]
        found = _core.sum_stored((*stored, starts, genes, True, 8 << 20), groups, 2, "int32", 2)
    assert found[0].tolist() == list(range(1, 11))
    assert found[1].tolist() == list(range(10))
    assert found[2].dtype == np.int64
    assert found[2].tolist() == [0, 4, 10]


def test_sums_that_do_not_fit_int32_become_int64(tmp_path):
    mask = np.ones((4, 4), bool)
    folder, matrix, _ = made.write_squares(tmp_path / "hd", mask, kept=1.1)
    matrix.data[:] = 2**31 - 1
    path = folder / SQUARE / "raw_feature_bc_matrix.h5"
    with h5py.File(path) as file:
        cells = file["matrix/barcodes"][:]
    path.unlink()
    made.write_10x(path, matrix, cells)
    found = read(folder)
    assert found.X.dtype == np.int64
    assert found.X.sum() == matrix.sum(dtype=np.int64)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i8", "<u2", ">i4"])
def test_counts_of_any_type_are_streamed(tmp_path, dtype):
    mask = tissue(40, 30)
    folder, matrix, places = made.write_squares(tmp_path / "hd", mask)
    path = folder / SQUARE / "raw_feature_bc_matrix.h5"
    with h5py.File(path) as file:
        cells = file["matrix/barcodes"][:]
    path.unlink()
    made.write_10x(path, matrix, cells, types={"data": dtype})
    assert check_rule(folder, matrix, places, mask, 4).X.dtype == np.int32


def test_counts_that_are_negative_are_refused_even_where_the_sum_is_not(tmp_path):
    folder, _, _ = made.write_squares(tmp_path / "hd", np.ones((8, 8), bool))
    with h5py.File(folder / SQUARE / "raw_feature_bc_matrix.h5", "a") as file:
        file["matrix/data"][3] = -1
    with pytest.raises(FormatError, match="expected counts, got negative"):
        read(folder)


def test_centres_are_those_of_whole_bins(tmp_path):
    """Also where the bin is cut by the grid's edge, and whatever squares have counts."""
    folder, _, _ = made.write_squares(tmp_path / "hd", np.ones((50, 50), bool), kept=0.3)
    found = read_visium_hd(folder, 8)
    row, col = (found.obs[c].to_numpy() * 4 + 1.5 for c in ("array_row", "array_col"))
    expected = np.column_stack([40 + 0.3 * row + 7.1 * col, 900 - 7.1 * row + 0.3 * col])
    np.testing.assert_allclose(found.obsm["spatial"], expected, rtol=0, atol=1e-9)
    assert set(found.obs["array_row"]) == set(range(13))


def test_a_projective_map_is_followed_locally(tmp_path):
    """Space Ranger's own maps are projective: the corner square places the bin."""
    folder, _, _ = made.write_squares(tmp_path / "hd", np.ones((64, 64), bool), kept=2)
    path = folder / SQUARE / "spatial/tissue_positions.parquet"
    grid = pd.read_parquet(path)
    depth = 1 + 1e-4 * grid["array_row"]
    grid["pxl_row_in_fullres"] /= depth
    grid["pxl_col_in_fullres"] /= depth
    grid.to_parquet(path)
    found = read_visium_hd(folder, 8)
    place = grid.groupby([grid["array_row"] // 4, grid["array_col"] // 4])
    mean = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].mean().to_numpy()
    assert np.abs(found.obsm["spatial"] - mean).max() < 0.1


def test_a_bin_whose_corner_the_table_lacks_is_placed_by_the_map(tmp_path):
    folder, matrix, places = made.write_squares(tmp_path / "hd", np.ones((16, 16), bool), kept=2)
    path = folder / SQUARE / "spatial/tissue_positions.parquet"
    grid = pd.read_parquet(path)
    corners = (grid["array_row"] % 4 == 0) & (grid["array_col"] % 4 == 0)
    with_counts = read_visium_hd(folder, 8)
    grid[~corners].to_parquet(path)
    raw = folder / SQUARE / "raw_feature_bc_matrix.h5"
    keep = (places % 4 != 0).any(axis=1)
    with h5py.File(raw) as file:
        cells = file["matrix/barcodes"][:][keep]
    raw.unlink()
    made.write_10x(raw, matrix[keep], cells)
    found = read_visium_hd(folder, 8)
    np.testing.assert_allclose(found.obsm["spatial"], with_counts.obsm["spatial"], atol=1e-9)


def test_squares_whose_place_the_table_lacks_are_warned_of(tmp_path):
    folder, matrix, _ = made.write_squares(tmp_path / "hd", np.ones((16, 16), bool), kept=2)
    path = folder / SQUARE / "spatial/tissue_positions.parquet"
    pd.read_parquet(path).iloc[5:].to_parquet(path)
    with pytest.warns(UserWarning, match="none for 5 of them"):
        found = read(folder)
    assert found.X.sum() == matrix[5:].sum()


def test_barcodes_that_come_again_are_summed_and_said(tmp_path):
    folder, matrix, _ = made.write_squares(tmp_path / "hd", np.ones((16, 16), bool), kept=2)
    with h5py.File(folder / SQUARE / "raw_feature_bc_matrix.h5", "a") as file:
        file["matrix/barcodes"][4] = file["matrix/barcodes"][5]
    with pytest.warns(UserWarning, match="expected each barcode once, got 1 again"):
        assert read(folder).X.sum() == matrix.sum()


def test_a_custom_size_on_disk_is_built_upon(tmp_path):
    """Bins of 4 µm alone: 8 and 12 µm are multiples, 6 is not."""
    mask = tissue(60, 50)
    folder, matrix, places = made.write_squares(tmp_path / "hd", mask, k=2)
    for k in (2, 3):
        sums, _, _ = oracles.binned(matrix, places[:, 0], places[:, 1], k)
        assert (read_visium_hd(folder, 4 * k, raw=True).X != sums).nnz == 0
    with pytest.raises(ValueError, match="expected a multiple of 4 µm"):
        read_visium_hd(folder, 6)


def test_a_matrix_in_three_texts_will_do(tmp_path):
    mask = tissue(40, 30)
    folder, _, _ = made.write_squares(tmp_path / "hd", mask)
    square = folder / SQUARE
    expected = read(folder)
    for kind in ("raw", "filtered"):
        path = square / f"{kind}_feature_bc_matrix.h5"
        with h5py.File(path) as file:
            cells = [cell.decode() for cell in file["matrix/barcodes"][:]]
        counts = read_visium_hd(folder, 2, raw=kind == "raw").X
        made.write_triplet(square / f"{kind}_feature_bc_matrix", counts, cells=cells)
    for kind in ("raw", "filtered"):
        (square / f"{kind}_feature_bc_matrix.h5").unlink()
    found = read(folder)
    assert (found.X != expected.X).nnz == 0
    np.testing.assert_allclose(found.obsm["spatial"], expected.obsm["spatial"], atol=1e-9)
    assert list(found.obs_names) == list(expected.obs_names)


def test_what_feature_slice_says_is_recorded(tmp_path):
    folder, _, _ = made.write_squares(tmp_path / "hd", tissue(40, 30))
    metadata = {"sample_id": "s", "slide_name": "visium_hd_v1", "nrows": 40, "ncols": 30}
    with h5py.File(folder / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(metadata)
    recorded = next(iter(read(folder).uns["spatial"].values()))["metadata"]["feature_slice"]
    assert json.loads(recorded) == metadata
    (folder / "feature_slice.h5").write_bytes(b"no")
    with pytest.raises(FormatError, match=r"feature_slice\.h5: expected a feature slice"):
        read(folder)


def test_slides_registered_before_3_1_2_are_warned_of(tmp_path, caplog):
    folder, _, _ = made.write_squares(tmp_path / "hd", tissue(40, 30))
    for version, said in (("spaceranger-3.0.1", True), ("4.0.1", False)):
        caplog.clear()
        with h5py.File(folder / SQUARE / "raw_feature_bc_matrix.h5", "a") as file:
            file.attrs["software_version"] = version
        read(folder)
        assert ("shift positions by 16 µm" in caplog.text) == said


# --- cells -------------------------------------------------------------------------------------


@pytest.fixture
def segmented(tmp_path):
    """Cells as 5 × 5 blocks of squares every 8, their nuclei the inner 3 × 3."""
    folder, matrix, places = made.write_squares(tmp_path / "hd", np.ones((40, 40), bool), kept=0.8)
    rows, cols = (a.ravel() for a in np.indices((40, 40)))
    inner = (rows % 8 < 5) & (cols % 8 < 5)
    nucleus = inner & (rows % 8 % 4 != 0) & (cols % 8 % 4 != 0)
    cell = np.where(inner, rows // 8 * 5 + cols // 8 + 1, 0)
    out = folder / "segmented_outputs"
    out.mkdir()
    table = pd.DataFrame(
        {
            "square_002um": [f"s_002um_{r:05}_{c:05}-1" for r, c in zip(rows, cols, strict=True)],
            "cell_id": [f"cellid_{c:09}-1" if c else None for c in cell],
            "in_nucleus": nucleus,
            "in_cell": inner,
        }
    )
    table.to_parquet(out / "barcode_mappings.parquet")
    shutil.copytree(folder / SQUARE / "spatial", out / "spatial")
    factors = json.loads((out / "spatial/scalefactors_json.json").read_text())
    del factors["spot_diameter_fullres"], factors["bin_size_um"], factors["microns_per_pixel"]
    (out / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    label = np.where(inner, cell, -1).reshape(40, 40)[tuple(places.T)]
    nuclear = np.where(nucleus, cell, -1).reshape(40, 40)[tuple(places.T)]
    return folder, matrix, {"cells": label, "nuclei": nuclear}


def polygons(cells, half):
    """GeoJSON squares around the cells' centres, in the slide's own map."""
    features = []
    for cell in cells:
        row, col = (cell - 1) // 5 * 8 + 2, (cell - 1) % 5 * 8 + 2
        ring = [
            [40 + 0.3 * r + 7.1 * c, 900 - 7.1 * r + 0.3 * c]
            for r, c in np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * half + (row, col)
        ]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        properties = {"cell_id": int(cell)}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features})


@pytest.mark.parametrize("kind", ["cells", "nuclei"])
@pytest.mark.parametrize("spelling", ["file", "page"])
def test_squares_are_summed_into_cells_and_nuclei(segmented, kind, spelling):
    folder, matrix, labels = segmented
    path = folder / "segmented_outputs/barcode_mappings.parquet"
    if spelling == "page":
        table = pd.read_parquet(path).rename(columns=str.capitalize)
        table["Cell_id"] = table["Cell_id"].fillna("cellid_000000000")
        table.to_parquet(path)
    found = at_any_workers(lambda n: read_visium_hd(folder, segments=kind, workers=n))
    expected = aggregate_bins(matrix, labels=labels[kind])
    assert (found.X != expected.matrix).nnz == 0
    assert found.obs["cell_id"].tolist() == expected.labels.tolist()
    assert found.obs_names[0] == "cellid_000000001-1"
    assert found.X.sum() == matrix[labels[kind] > 0].sum()
    factors = next(iter(found.uns["spatial"].values()))["scalefactors"]
    assert factors["spot_diameter_fullres"] > 0
    assert factors["microns_per_pixel"] == 2 / 7.1
    assert "bin_size_um" not in factors


def test_polygons_place_cells(segmented):
    folder, _, _ = segmented
    path = folder / "segmented_outputs/cell_segmentations.geojson"
    path.write_text(polygons(range(1, 26), 2.5))
    found = read_visium_hd(folder, segments="cells")
    number = found.obs["cell_id"].to_numpy() - 1
    row, col = number // 5 * 8 + 2, number % 5 * 8 + 2
    expected = np.column_stack([40 + 0.3 * row + 7.1 * col, 900 - 7.1 * row + 0.3 * col])
    np.testing.assert_allclose(found.obsm["spatial"], expected, atol=1e-9)
    np.testing.assert_allclose(found.obs["area_px"], 25 * (7.1**2 + 0.3**2))
    path.write_text("{")
    with pytest.raises(FormatError, match=r"cell_segmentations\.geojson: expected GeoJSON"):
        read_visium_hd(folder, segments="cells")


def test_the_matrix_of_cells_is_taken_as_it_is(segmented):
    folder, _, _ = segmented
    matrix = made.counts(3, 20, seed=9)
    cells = ["cellid_000000002-1", "cellid_000000007-1", "cellid_000000011-1"]
    out = folder / "segmented_outputs"
    made.write_10x(out / "filtered_feature_cell_matrix.h5", matrix, cells)
    with pytest.raises(FileNotFoundError, match="expected polygons of cells, got none"):
        read_visium_hd(folder, segments="cells")
    (out / "cell_segmentations.geojson").write_text(polygons([2, 7, 11], 1))
    found = read_visium_hd(folder, segments="cells")
    assert_same(found.X, matrix)
    assert found.obs["cell_id"].tolist() == [2, 7, 11]
    (out / "cell_segmentations.geojson").write_text(polygons([2, 7], 1))
    with pytest.raises(FormatError, match=r"got none for 1 of them \(first 'cellid_000000011-1'"):
        read_visium_hd(folder, segments="cells")


def test_what_segments_lack_is_named(segmented, tmp_path):
    folder, _, _ = segmented
    with pytest.raises(ValueError, match="segments: expected 'cells' or 'nuclei', got 'x'"):
        read_visium_hd(folder, segments="x")
    out = folder / "segmented_outputs"
    pl.read_parquet(out / "barcode_mappings.parquet").drop("in_nucleus").write_parquet(
        out / "barcode_mappings.parquet"
    )
    with pytest.raises(FormatError, match="expected a column in_nucleus"):
        read_visium_hd(folder, segments="nuclei")
    (out / "barcode_mappings.parquet").write_bytes(b"no")
    with pytest.raises(FormatError, match="expected a Parquet table"):
        read_visium_hd(folder, segments="nuclei")
    (out / "barcode_mappings.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected barcode_mappings\.parquet, got none"):
        read_visium_hd(folder, segments="nuclei")
    shutil.rmtree(out)
    with pytest.raises(FileNotFoundError, match="expected segmented_outputs, got none"):
        read_visium_hd(folder, segments="nuclei")
