"""The contract: what stfast reads plots in scanpy and squidpy and turns into SpatialData.

The packages themselves are the judges. squidpy, spatialdata, spatialdata-io and annbatch
bring a hundred others along, so they have an environment of their own: `make test-contract`.
Without them their tests are skipped.
"""

import warnings

import matplotlib as mpl
import numpy as np
import pytest

import oracles_readers as made
from stfast import read, read_st, read_visium_hd, to_spatialdata
from stfast.convert import save

mpl.use("Agg")
WHY = "make test-contract"


@pytest.fixture(scope="module")
def visium(tmp_path_factory):
    return read(made.write_visium(tmp_path_factory.mktemp("v") / "sample/outs", full=True))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Bins of another map than the synthetic slide's."""
    mask = np.ones((40, 40), bool)
    folder, _, _ = made.write_squares(tmp_path_factory.mktemp("hd") / "hd", mask)
    return read_visium_hd(folder, 8)


@pytest.fixture(scope="module")
def st(real):
    return read_st(real("st/micro"))


@pytest.mark.parametrize("which", ["visium", "bins", "st"])
def test_scanpy_plots_it(request, which):
    import scanpy

    slide = request.getfixturevalue(which).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = scanpy.pl.spatial(slide, color=slide.var_names[0], show=False)
    (axis,) = axes
    assert len(axis.images) == 1
    (spots,) = [c for c in axis.collections if len(c.get_paths()) or len(c.get_offsets())]
    assert len(spots.get_array()) == slide.n_obs
    mpl.pyplot.close("all")


@pytest.mark.parametrize("which", ["visium", "bins"])
def test_scanpy_computes_on_it(request, which):
    import scanpy

    slide = request.getfixturevalue(which).copy()
    scanpy.pp.calculate_qc_metrics(slide, inplace=True, percent_top=None)
    np.testing.assert_array_equal(slide.obs["total_counts"], slide.X.sum(axis=1).A1)
    scanpy.pp.normalize_total(slide)
    scanpy.pp.log1p(slide)
    assert np.isfinite(slide.X.data).all()


@pytest.mark.parametrize("which", ["visium", "bins", "st"])
def test_squidpy_plots_it(request, which):
    squidpy = pytest.importorskip("squidpy", reason=WHY)
    slide = request.getfixturevalue(which).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axis = squidpy.pl.spatial_scatter(slide, color=slide.var_names[0], return_ax=True)
    assert len(axis.collections[0].get_array()) == slide.n_obs
    mpl.pyplot.close("all")


def test_squidpy_finds_the_six_neighbours_of_a_spot(visium):
    squidpy = pytest.importorskip("squidpy", reason=WHY)
    slide = visium.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        squidpy.gr.spatial_neighbors(slide, coord_type="grid", n_neighs=6)
    assert slide.obsp["spatial_connectivities"].sum(axis=1).max() == 6


def test_squidpy_reads_the_same_visium(tmp_path):
    squidpy = pytest.importorskip("squidpy", reason=WHY)
    outs = made.write_visium(tmp_path / "sample/outs")
    found = read(outs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = squidpy.read.visium(outs, library_id="sample")
    assert (found.X != expected.X).nnz == 0
    assert list(found.obs_names) == list(expected.obs_names)
    assert list(found.var_names) == list(expected.var_names)
    for name in ("in_tissue", "array_row", "array_col"):
        np.testing.assert_array_equal(found.obs[name], expected.obs[name])
    np.testing.assert_allclose(found.obsm["spatial"], expected.obsm["spatial"], atol=1e-9)
    theirs, ours = (a.uns["spatial"]["sample"]["scalefactors"] for a in (expected, found))
    assert theirs.items() <= ours.items()


@pytest.mark.parametrize("which", ["visium", "bins", "cells", "st"])
def test_it_turns_into_spatialdata(request, which, tmp_path):
    spatialdata = pytest.importorskip("spatialdata", reason=WHY)
    slide = request.getfixturevalue(which)
    sdata = to_spatialdata(slide)
    ((name, library),) = slide.uns["spatial"].items()
    table = sdata.tables["table"]
    assert (table.X != slide.X).nnz == 0
    assert set(sdata.coordinate_systems) == {
        name,
        *(f"{name}_downscaled_{kind}" for kind in library["images"]),
    }
    shapes = sdata.shapes[name]
    centres = np.column_stack([shapes.geometry.centroid.x, shapes.geometry.centroid.y])
    np.testing.assert_allclose(centres, slide.obsm["spatial"], atol=1e-6)
    for kind, pixels in library["images"].items():
        image = sdata.images[f"{name}_{kind}_image"]
        np.testing.assert_array_equal(np.moveaxis(np.asarray(image), 0, -1), pixels)
        box = spatialdata.get_extent(image, coordinate_system=name)
        scale = library["scalefactors"][f"tissue_{kind}_scalef"]
        assert box["x"][1] == pytest.approx(pixels.shape[1] / scale)
        assert box["y"][1] == pytest.approx(pixels.shape[0] / scale)
    sdata.write(tmp_path / "a.zarr")
    again = spatialdata.read_zarr(tmp_path / "a.zarr")
    assert (again.tables["table"].X != slide.X).nnz == 0
    assert len(again.shapes[name]) == slide.n_obs


def test_bins_are_squares_along_their_grid(cells):
    pytest.importorskip("spatialdata", reason=WHY)
    shapes = to_spatialdata(cells).shapes["hd"]
    side = 4 * np.hypot(7.1, 0.3)
    np.testing.assert_allclose(shapes.geometry.area, side**2)
    inside = cells.obs[["array_row", "array_col"]].max(axis=1) < 9
    assert shapes.geometry[inside.to_numpy()].union_all().area == pytest.approx(
        inside.sum() * side**2, rel=1e-6
    ), "neighbours touch and do not overlap"


def test_spatialdata_rasterizes_the_bins(cells):
    spatialdata = pytest.importorskip("spatialdata", reason=WHY)
    sdata = to_spatialdata(cells)
    sdata.tables["table"].X = sdata.tables["table"].X.tocsc()
    raster = spatialdata.rasterize_bins(
        sdata, bins="hd", table_name="table", col_key="array_col", row_key="array_row"
    )
    image = np.asarray(raster)
    dense = cells.X.toarray()
    rows, cols = cells.obs["array_row"].to_numpy(), cells.obs["array_col"].to_numpy()
    expected = np.zeros((10, 10))
    expected[rows, cols] = dense[:, 3]
    np.testing.assert_array_equal(image[3], expected)


def test_spatialdata_io_reads_the_same_visium(tmp_path):
    io = pytest.importorskip("spatialdata_io", reason=WHY)
    outs = made.write_visium(tmp_path / "sample/outs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = io.visium(outs, dataset_id="sample", counts_file="filtered_feature_bc_matrix.h5")
    found = read(outs)
    ours = to_spatialdata(found)
    table = theirs.tables["table"]
    assert (found.X != table.X).nnz == 0
    np.testing.assert_allclose(found.obsm["spatial"], table.obsm["spatial"], atol=1e-9)
    mine, other = ours.shapes["sample"], theirs.shapes["sample"]
    np.testing.assert_allclose(mine["radius"], other["radius"])
    np.testing.assert_allclose(mine.geometry.x, other.geometry.x)
    assert set(ours.coordinate_systems) == set(theirs.coordinate_systems)
    assert set(ours.images) == set(theirs.images)
    for name in ours.images:
        np.testing.assert_array_equal(
            np.asarray(ours.images[name]), np.asarray(theirs.images[name])
        )


@pytest.mark.parametrize("shuffle", [False, True])
def test_annbatch_loads_the_rows_of_slides_written_as_zarr(visium, st, tmp_path, shuffle):
    annbatch = pytest.importorskip("annbatch", reason=WHY)
    import anndata
    import zarr

    slides = [slide[:, :10].copy() for slide in (visium, st)]
    loader = annbatch.Loader(
        batch_size=7, chunk_size=4, preload_nchunks=7, shuffle=shuffle, return_index=True,
        rng=np.random.default_rng(0) if shuffle else None,
    )  # fmt: skip
    for number, slide in enumerate(slides):
        slide.var_names = [f"g{i}" for i in range(10)]
        save(slide, tmp_path / f"{number}.zarr")
        stored = anndata.io.sparse_dataset(zarr.open(tmp_path / f"{number}.zarr")["X"])
        loader.add_dataset(stored, obs=slide.obs[["array_row"]])
    seen = []
    rows = np.vstack([slide.X.toarray() for slide in slides])
    for batch in loader:
        np.testing.assert_array_equal(batch["X"].toarray(), rows[batch["index"]])
        seen += batch["index"].tolist()
    assert sorted(seen) == list(range(len(rows)))
    assert (seen == sorted(seen)) is not shuffle


def test_without_spatialdata_it_says_what_to_install(bins):
    try:
        import spatialdata  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="spatialdata"):
            to_spatialdata(bins)
    else:
        pytest.skip("spatialdata is here")
