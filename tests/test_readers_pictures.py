"""Which picture of a Visium slide is used, at what size, and how many µm its pixels are."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import oracles
import oracles_readers as made
import stfast
from stfast import _spatial, read_visium
from stfast.readers._positions import read_positions
from stfast.readers.visium import spot_pitch
from test_readers_visium import assert_spots, library_of, table_of


@pytest.fixture
def outs(tmp_path):
    return made.write_visium(tmp_path / "sample/outs")


# --- pictures ----------------------------------------------------------------------------------


def test_the_full_picture_is_used_where_it_is(tmp_path):
    outs = made.write_visium(tmp_path / "sample/outs", full=True)
    found = read_visium(outs)
    metadata = library_of(found)["metadata"]
    assert metadata["source_image"] == "full"
    assert metadata["source_image_path"] == str(outs / "tissue_image.tif")
    assert "source_image_scalef" not in metadata
    assert found.obs["in_picture"].all()
    np.testing.assert_array_equal(_spatial.centers(found), found.obsm["spatial"])
    assert _spatial.spot_span(found) == 26.0


@pytest.mark.parametrize("kind", ["hires", "lowres"])
def test_else_the_best_overview_is_and_all_is_scaled_to_it(outs, kind):
    if kind == "lowres":
        (outs / "spatial/tissue_hires_image.png").unlink()
    found = read_visium(outs)
    scale = made.VISIUM_FACTORS[f"tissue_{kind}_scalef"]
    metadata = library_of(found)["metadata"]
    assert metadata["source_image"] == kind
    assert metadata["source_image_scalef"] == scale
    assert metadata["source_image_path"] == str(outs / f"spatial/tissue_{kind}_image.png")
    assert found.obs["in_picture"].all()
    # scanpy's coordinates stay at full resolution; what cuts tiles is scaled.
    assert_spots(found, table_of(outs))
    np.testing.assert_allclose(_spatial.centers(found), found.obsm["spatial"] * scale)
    assert _spatial.spot_span(found) == 26.0 * scale
    assert _spatial.mpp(found) == pytest.approx(100 / 40.0 / scale, rel=1e-3)


def test_tiles_of_the_hires_picture_lie_where_the_spots_do(outs):
    """A dark disc is drawn under one spot of the hires picture; its tile is dark."""
    path = outs / "spatial/tissue_hires_image.png"
    found = read_visium(outs)
    x, y = found.obsm["spatial"][7] * 0.5
    pixels = np.full((450, 400, 3), 255, np.uint8)
    pixels[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8] = 0
    Image.fromarray(pixels).save(path)
    tiles = stfast.extract_tiles(path, _spatial.centers(found), 8, span=_spatial.spot_span(found))
    darkness = 255 - tiles.reshape(len(tiles), -1).mean(axis=1)
    assert darkness.argmax() == 7
    assert darkness[7] > 200


def test_without_any_picture_the_slide_is_read_all_the_same(outs):
    for kind in ("hires", "lowres"):
        (outs / f"spatial/tissue_{kind}_image.png").unlink()
    found = read_visium(outs)
    assert "in_picture" not in found.obs
    assert library_of(found)["images"] == {}
    with pytest.raises(ValueError, match="expected a full-resolution image, got none"):
        _spatial.image_path(found)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((400, 450), r"it is the same picture at 0\.5 of the size"),
        ((900, 800), "it is turned by a quarter"),
        ((800, 300), "is it another picture"),
    ],
)
def test_a_full_picture_of_the_wrong_size_is_told_what_is_wrong(outs, tmp_path, size, reason):
    Image.new("RGB", size).save(tmp_path / "he.tif")
    with pytest.warns(UserWarning, match=rf"he\.tif: expected about \[900, 800\] pixels.*{reason}"):
        read_visium(outs, image=tmp_path / "he.tif")


def test_a_full_picture_of_any_name_is_known_by_its_size(tmp_path):
    outs = made.write_visium(tmp_path / "sample/outs", full=True)
    (outs / "tissue_image.tif").rename(outs / "he stain.tif")
    Image.new("RGB", (30, 20)).save(outs / "other.png")
    assert library_of(read_visium(outs))["metadata"]["source_image_path"].endswith("he stain.tif")


def test_quality_pictures_are_not_taken_for_the_slide(outs):
    for name in ("detected_tissue_image.jpg", "aligned_fiducials.jpg", "aligned_tissue_image.jpg"):
        Image.new("RGB", (800, 900)).save(outs / "spatial" / name)
    assert library_of(read_visium(outs))["metadata"]["source_image"] == "hires"


def test_the_cytassist_picture_is_used_where_positions_refer_to_it(outs):
    Image.new("RGB", (300, 300)).save(outs / "spatial/cytassist_image.tiff")
    assert library_of(read_visium(outs))["metadata"]["source_image"] == "hires"
    Image.new("RGB", (800, 900)).save(outs / "spatial/cytassist_image.tiff")
    metadata = library_of(read_visium(outs))["metadata"]
    assert metadata["source_image_path"].endswith("cytassist_image.tiff")


def test_spots_off_the_picture_are_flagged_never_dropped(outs):
    path = outs / "spatial/tissue_positions.csv"
    table = pd.read_csv(path)
    table["pxl_col_in_fullres"] -= 200
    table.to_csv(path, index=False)
    found = read_visium(outs)
    outside = found.obsm["spatial"][:, 0] < 0
    assert 0 < outside.sum() < found.n_obs
    np.testing.assert_array_equal(found.obs["in_picture"], ~outside)


# --- µm per pixel ------------------------------------------------------------------------------


def test_mpp_is_that_of_the_arrays_pitch(outs):
    library = library_of(read_visium(outs))
    assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(100 / 40.0, rel=1e-9)
    assert library["metadata"]["mpp_source"] == "array pitch"


def test_mpp_of_the_scale_factors_comes_first(outs):
    path = outs / "spatial/scalefactors_json.json"
    path.write_text(json.dumps(made.VISIUM_FACTORS | {"microns_per_pixel": 0.5}))
    library = library_of(read_visium(outs))
    assert library["scalefactors"]["microns_per_pixel"] == 0.5
    assert library["metadata"]["mpp_source"] == "scale factors"


def test_the_pictures_tag_is_held_against_it(tmp_path):
    outs = made.write_visium(tmp_path / "sample/outs")
    pixels = oracles.picture(900, 800)
    for mpp, wrong in ((2.5, False), (0.5, True)):
        tifffile.imwrite(
            outs / "tissue_image.tif",
            pixels,
            resolution=(1e4 / mpp, 1e4 / mpp),
            resolutionunit="CENTIMETER",
        )
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            read_visium(outs)
        # anndata 0.13 causes another with pandas 3: it asks for an option that will go.
        ours = [w for w in said if "future.infer_string" not in str(w.message)]
        assert [w for w in ours if "µm per pixel" in str(w.message)] == ours
        assert bool(ours) == wrong


def test_real_spots_are_65_um_wide_or_70(real):
    """formats.md 1.2: diameter ÷ pitch in the SR 1.0 slides is 70 µm, since then 65."""
    for folder, name, um in (
        ("visium/sr1/spatial", "tissue_positions_list.csv", 65),
        ("visium/dlpfc-151673", "tissue_positions_list.txt", 70),
    ):
        table = read_positions(real(f"{folder}/{name}"))
        assert len(table) == 4992
        columns = [table[c].to_numpy() for c in ("array_row", "array_col")]
        pitch = spot_pitch(*columns, table.select(made.PIXELS[::-1]).to_numpy())
        factors = json.loads((real(folder) / "scalefactors_json.json").read_text())
        assert factors["spot_diameter_fullres"] / pitch * 100 == pytest.approx(um, abs=0.4)


def test_the_size_of_the_slide_is_told(outs):
    assert library_of(read_visium(outs))["metadata"]["slide_mm"] == 6.5
    path = outs / "spatial/tissue_positions.csv"
    table = pd.read_csv(path)
    table["array_row"] += 100
    table.to_csv(path, index=False)
    assert library_of(read_visium(outs))["metadata"]["slide_mm"] == 11.0


def test_without_scale_factors_the_diameter_is_65_um_of_the_pitch(outs):
    (outs / "spatial/scalefactors_json.json").unlink()
    with pytest.warns(UserWarning, match=r"expected scalefactors_json\.json, got none"):
        found = read_visium(outs)
    factors = library_of(found)["scalefactors"]
    assert factors["spot_diameter_fullres"] == pytest.approx(0.65 * 40, rel=1e-9)
