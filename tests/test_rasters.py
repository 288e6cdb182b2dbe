"""rasterize against a plain look at every pixel and spot, and its windows against tiles."""

import subprocess
import sys

import numpy as np
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse

import oracles
import stfast
from oracles import at_any_workers


@pytest.fixture(scope="module")
def spotted(tmp_path_factory):
    """70 spots whose circles overlap, on a picture of 180 × 150."""
    return oracles.slide_with_picture(tmp_path_factory.mktemp("raster"), 3)


def plain(adata, genes, scale, shape):
    """Each pixel's nearest spot within its radius, one by one."""
    xy, radius = adata.obsm["spatial"], 21.3 / 2
    values = adata[:, genes].X.toarray()
    out = np.zeros((len(genes), round(shape[0] * scale), round(shape[1] * scale)), np.float32)
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            far = np.hypot(*(xy - np.array([column + 0.5, row + 0.5]) / scale).T)
            if far.min() <= radius:
                out[:, row, column] = values[far.argmin()]
    return out


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.37])
def test_a_pixel_is_the_spot_it_lies_in(spotted, scale):
    genes = ["g3", "g0"]
    raster = stfast.rasterize(spotted, genes, scale=scale)
    expected = plain(spotted, genes, scale, (180, 150))
    assert raster.shape == expected.shape
    np.testing.assert_array_equal(raster[:], expected)
    packed = raster.to_sparse()
    assert sparse.issparse(packed)
    np.testing.assert_array_equal(packed.toarray().reshape(expected.shape), expected)


def test_parts_are_those_of_the_whole(spotted):
    raster = stfast.rasterize(spotted, scale=0.5)
    whole = raster[:]
    for key in (2, (slice(1, 4), 7), (slice(None), slice(3, 50), slice(60, 10, -2)), (-1, -1, -1)):
        np.testing.assert_array_equal(raster[key], whole[key])
    assert raster[0:0].shape == (0, *raster.shape[1:])
    assert "0.5 pixels" in repr(raster)
    with pytest.raises(IndexError):
        raster[99]


def test_dask_takes_it_as_an_array(spotted):
    array = pytest.importorskip("dask.array")
    raster = stfast.rasterize(spotted, scale=0.5)
    lazy = array.from_array(raster, chunks=(3, 40, 40))
    np.testing.assert_array_equal(lazy[1:5].sum(axis=0).compute(), raster[1:5].sum(axis=0))


@pytest.mark.parametrize(("size", "span"), [(21, None), (8, 40.0)])
def test_tiles_are_the_windows_of_extract_tiles(spotted, size, span, tmp_path):
    """Painted as a picture, the raster is cut to the same tiles, where nothing is resized."""
    raster = stfast.rasterize(spotted, ["g0", "g1", "g2"])
    xy = spotted.obsm["spatial"]
    found = at_any_workers(lambda n: raster.tiles(xy, size, span=span, workers=n))
    assert found.shape == (70, 3, size, size)
    if span is None:
        inner = ((xy > 30) & (xy < 120)).all(axis=1)
        Image.fromarray(raster[:].transpose(1, 2, 0).astype(np.uint8)).save(tmp_path / "r.png")
        tiles = stfast.extract_tiles(tmp_path / "r.png", xy[inner], size, span=size)
        exact = stfast.rasterize(spotted, ["g0", "g1", "g2"]).tiles(xy[inner], size, span=size)
        np.testing.assert_array_equal(exact.transpose(0, 2, 3, 1), tiles)


def test_bins_are_squares_without_gaps(bins, tmp_path):
    raster = stfast.rasterize(bins, [bins.var_names[0]], mpp=2.0)
    assert raster.square
    np.testing.assert_array_equal(raster.spots(bins.obsm["spatial"]), np.arange(bins.n_obs))
    factors = next(iter(bins.uns["spatial"].values()))["scalefactors"]
    assert raster.scale == pytest.approx(factors["microns_per_pixel"] / 2)
    grid = np.stack(np.meshgrid(np.arange(20) * 16.0, np.arange(20) * 16.0), -1).reshape(-1, 2)
    turn = np.deg2rad(2)
    turned = grid @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]] + 40
    adata = AnnData(np.ones((400, 1), np.float32), obsm={"spatial": turned})
    Image.fromarray(np.zeros((400, 400, 3), np.uint8)).save(tmp_path / "p.png")
    scales = {"spot_diameter_fullres": 16.0, "bin_size_um": 8.0}
    told = {"source_image_path": str(tmp_path / "p.png")}
    adata.uns["spatial"] = {"s": {"scalefactors": scales, "images": {}, "metadata": told}}
    values = stfast.rasterize(adata)[0]
    assert (values[70:330, 70:330] == 1).all()
    assert (values[:20] == 0).all()


def test_bad_arguments_are_refused(spotted):
    with pytest.raises(ValueError, match="genes: expected the slide's, got 'ERBB2'"):
        stfast.rasterize(spotted, ["ERBB2"])
    with pytest.raises(ValueError, match="scale: expected none beside mpp"):
        stfast.rasterize(spotted, mpp=1, scale=1)
    with pytest.raises(ValueError, match="no larger than a spot"):
        stfast.rasterize(spotted, scale=1 / 30)
    with pytest.raises(ValueError, match="scalefactors: expected 'microns_per_pixel'"):
        stfast.rasterize(spotted, mpp=1)
    with pytest.raises(ValueError, match="spatial"):
        stfast.rasterize(AnnData(np.zeros((2, 2))))


# --- beside the loader -------------------------------------------------------------------------


def test_a_loader_gives_channels_beside_the_pixels_turned_alike(spotted, tmp_path):
    pytest.importorskip("torch")
    from stfast.loader import GeneChannels

    rasters = {"s3": stfast.rasterize(spotted, ["g0", "g1", "g2"])}
    painted = rasters["s3"][:].transpose(1, 2, 0).astype(np.uint8)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    twin = spotted.copy()
    twin.uns["spatial"]["s3"]["metadata"]["source_image_path"] = str(tmp_path / "painted.png")
    options = {"size": 20, "span": 20, "batch_size": 32, "device": "cpu"}
    loader = stfast.TileLoader(twin, augment=stfast.Augment(), **options)
    channels = GeneChannels(loader, rasters, span=20)
    assert len(channels) == 3
    assert channels.genes == ["g0", "g1", "g2"]
    for _ in range(2):
        for batch, found in channels:
            near = ((batch.coords > 20) & (batch.coords < 130)).all(1).numpy()
            pixels = batch.image.permute(0, 3, 1, 2).numpy()
            np.testing.assert_array_equal(found.numpy()[near], pixels[near])


def test_rasters_of_other_slides_or_genes_are_refused(spotted):
    pytest.importorskip("torch")
    from stfast.loader import GeneChannels

    loader = stfast.TileLoader(spotted, device="cpu")
    with pytest.raises(ValueError, match="expected one of each slide, got none of 's3'"):
        GeneChannels(loader, {})


def test_the_function_is_what_its_name_gives_whichever_is_asked_first():
    code = "import stfast; stfast.Raster; assert callable(stfast.rasterize)"
    subprocess.run([sys.executable, "-c", code], check=True)
