"""Visium: Space Ranger 1 to 4 and what becomes of its files, against scanpy and squidpy's rules."""

import gzip
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy
from PIL import Image

import oracles
import oracles_readers as made
from oracles import assert_same, at_any_workers
from stfast import FormatError, _spatial, read, read_visium


@pytest.fixture
def outs(tmp_path):
    return made.write_visium(tmp_path / "sample/outs")


def table_of(outs):
    return made.spots().set_index("barcode")


def assert_spots(found, table):
    """Positions, grid and tissue are those of the table."""
    here = table.loc[found.obs_names]
    for name in ("in_tissue", "array_row", "array_col"):
        np.testing.assert_array_equal(found.obs[name], here[name])
        assert found.obs[name].dtype == np.int64
    np.testing.assert_allclose(
        found.obsm["spatial"], here[made.PIXELS[::-1]].to_numpy(), rtol=0, atol=0.51
    )


def library_of(found):
    ((_, library),) = found.uns["spatial"].items()
    return library


@pytest.mark.parametrize("header", [True, False])
def test_counts_and_positions_are_scanpys(tmp_path, header):
    outs = made.write_visium(tmp_path / "sample/outs", header=header)
    found = at_any_workers(lambda n: read_visium(outs, workers=n))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = scanpy.read_visium(outs)
    assert (found.X != expected.X).nnz == 0
    assert list(found.obs_names) == list(expected.obs_names)
    for name in ("in_tissue", "array_row", "array_col"):
        np.testing.assert_array_equal(found.obs[name], expected.obs[name])
    # pandas' parser of floats may miss the last bit.
    np.testing.assert_allclose(
        found.obsm["spatial"], expected.obsm["spatial"].astype(float), rtol=0, atol=1e-12
    )
    assert_spots(found, table_of(outs))
    assert list(found.uns["spatial"]) == ["sample"]
    ((_, theirs),) = expected.uns["spatial"].items()
    for kind in ("hires", "lowres"):
        pixels = np.rint(theirs["images"][kind] * 255)
        np.testing.assert_array_equal(library_of(found)["images"][kind], pixels)


@pytest.mark.parametrize("where", ["sample", "sample/outs"])
def test_read_finds_the_outs(outs, tmp_path, where):
    found = read(tmp_path / where)
    assert_spots(found, table_of(outs))
    assert list(found.uns["spatial"]) == ["sample"]


def test_raw_has_the_spots_off_the_tissue(outs):
    found = read_visium(outs, raw=True)
    table = table_of(outs)
    assert found.n_obs == len(table)
    assert_spots(found, table)
    assert set(found.obs["in_tissue"]) == {0, 1}


@pytest.mark.parametrize(
    "name", ["tissue_positions_list.csv", "tissue_positions.csv", "positions.txt"]
)
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("kind", ["plain", "gzip", "parquet", "tabs", "windows"])
def test_positions_are_told_by_content_not_by_name(outs, name, header, kind):
    path = outs / "spatial/tissue_positions.csv"
    table = pd.read_csv(path)
    path.unlink()
    path = outs / "spatial" / name
    if kind == "parquet":
        table.to_parquet(path.with_suffix(".parquet"))
    else:
        text = table.to_csv(header=header, index=False, sep="\t" if kind == "tabs" else ",")
        if kind == "windows":
            text = "\ufeff" + text.replace("\n", "\r\n")
        path.write_bytes(text.encode())
    if kind == "gzip":
        made.gzip_in_place(path)
    assert_spots(read_visium(outs), table_of(outs))


def test_geo_folders_are_read_without_renaming(outs, tmp_path):
    flat = made.flatten(outs, tmp_path / "flat", "GSM123_A")
    expected = read_visium(outs)
    found = read(flat)
    assert_same((found.X, found.var), (expected.X, expected.var))
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert list(found.uns["spatial"]) == ["GSM123_A"]
    for kind in ("hires", "lowres"):
        np.testing.assert_array_equal(
            library_of(found)["images"][kind], library_of(expected)["images"][kind]
        )
    assert library_of(found)["scalefactors"] == library_of(expected)["scalefactors"]


def test_geo_folders_with_triplets_and_several_samples(tmp_path):
    flat = tmp_path / "flat"
    for seed, sample in enumerate(("GSM1_A", "GSM2_B")):
        outs = made.write_visium(tmp_path / sample / "outs", seed=seed)
        made.flatten(outs, flat, sample)
        (flat / f"{sample}_filtered_feature_bc_matrix.h5.gz").unlink()
        filtered = read_visium(outs)
        cells = list(filtered.obs_names)
        made.write_triplet(flat, filtered.X, prefix=f"{sample}_", cells=cells)
    with pytest.raises(FormatError, match="sample= as one of them, got GSM1_A, GSM2"):
        read(flat)
    for sample in ("GSM1_A", "GSM2_B"):
        expected = read_visium(tmp_path / sample / "outs")
        found = read(flat, sample=sample)
        assert (found.X != expected.X).nnz == 0
        np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
        assert list(found.uns["spatial"]) == [sample]


def test_downloads_of_10x_have_a_sample_before_each_name(outs, tmp_path):
    flat = made.flatten(outs, tmp_path / "flat", "V1_Breast", zipped=False)
    (flat / "spatial").mkdir()
    for name in ("scalefactors_json.json", "tissue_positions.csv", "tissue_hires_image.png"):
        shutil.move(flat / f"V1_Breast_{name}", flat / "spatial" / name)
    shutil.move(flat / "V1_Breast_tissue_lowres_image.png", flat / "spatial")
    expected = read_visium(outs)
    found = read(flat)
    assert_same(found.X, expected.X)
    assert set(library_of(found)["images"]) == {"hires", "lowres"}


def test_a_suffix_on_one_side_alone_is_no_mismatch(outs):
    path = outs / "spatial/tissue_positions.csv"
    path.write_text(path.read_text().replace("-1,", ","))
    found = read_visium(outs)
    assert found.obs_names[0].endswith("-1")
    assert found.n_obs == (made.spots()["in_tissue"] == 1).sum()


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
    import stfast

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
    import tifffile

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
        assert [w for w in said if "µm per pixel" in str(w.message)] == said
        assert bool(said) == wrong


def test_real_spots_are_65_um_wide_or_70(real):
    """formats.md 1.2: diameter ÷ pitch in the SR 1.0 slides is 70 µm, since then 65."""
    from stfast.readers._positions import read_positions
    from stfast.readers.visium import spot_pitch

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


# --- mismatches --------------------------------------------------------------------------------


def test_barcodes_that_match_no_position_are_counted_on_both_sides(outs):
    path = outs / "spatial/tissue_positions.csv"
    table = pd.read_csv(path)
    inside = np.flatnonzero(table["in_tissue"] == 1)
    lost, moved = inside[:3], np.flatnonzero(table["in_tissue"] == 0)[:5]
    table.loc[moved, "in_tissue"] = 1
    table.drop(index=lost).to_csv(path, index=False)
    with pytest.warns(UserWarning, match=r"a position for each of \d+ barcodes .* none for 3 of"):
        found = read_visium(outs)
    assert found.n_obs == len(inside) - 3
    assert_spots(found, table.set_index("barcode"))
    step = found.uns["stfast"]["read_visium"]
    assert step["barcodes_without_position"] == 3
    assert step["tissue_positions_without_counts"] == 5


def rename(text):
    return lambda outs: edit(outs, lambda t: t.assign(barcode=text + t["barcode"]))


def edit(outs, change):
    path = outs / "spatial/tissue_positions.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


def say(name, content):
    return lambda outs: (outs / name).write_bytes(content)


POSITIONS, FACTORS = "spatial/tissue_positions.csv", "spatial/scalefactors_json.json"
BROKEN = {
    "other barcodes": (rename("x"), "tissue_positions.csv: expected a position for each"),
    "positions empty": (say(POSITIONS, b""), "tissue_positions.csv: expected a table"),
    "positions of words": (say(POSITIONS, b"hello\n"), "expected positions as barcode"),
    "five columns": (
        lambda outs: edit(outs, lambda t: t.drop(columns="array_row")),
        r"got columns \['barcode', 'in_tissue', 'array_col'",
    ),
    "row of text": (
        lambda outs: edit(outs, lambda t: t.assign(array_row="a")),
        "expected barcodes as text and numbers",
    ),
    "row in parts": (
        lambda outs: edit(outs, lambda t: t.assign(array_row=0.5)),
        "expected whole in_tissue, array_row, array_col",
    ),
    "x missing": (
        lambda outs: edit(outs, lambda t: t.assign(pxl_col_in_fullres=np.nan)),
        "tissue_positions.csv: expected",
    ),
    "positions twice": (
        lambda outs: edit(outs, lambda t: pd.concat([t, t])),
        "expected each barcode once, got some twice",
    ),
    "positions no gzip": (
        say(POSITIONS, gzip.compress(b"a,b\n")[:-6]),
        "tissue_positions.csv: expected a table of positions",
    ),
    "factors of Loupe": (say(FACTORS, b'{"serialNumber": "V1"}'), r"got \['serialNumber'\]"),
    "factors cut": (say(FACTORS, b'{"spot'), "scalefactors_json.json: expected JSON"),
    "picture of words": (
        say("spatial/tissue_hires_image.png", b"x"),
        "tissue_hires_image.png: expected a picture",
    ),
    "matrix cut": (say("filtered_feature_bc_matrix.h5", b"\x89HDF"), "expected a 10x"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_names_the_file_and_the_fault(outs, fault):
    change, message = BROKEN[fault]
    change(outs)
    with pytest.raises(FormatError, match=message):
        read_visium(outs)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (POSITIONS, "expected positions of spots .*got none"),
        ("filtered_feature_bc_matrix.h5", None),
    ],
)
def test_missing_files_are_named(outs, lost, message):
    (outs / lost).unlink()
    if message is None:
        # The raw one has all that the filtered one has, and more.
        assert read_visium(outs).n_obs == len(made.spots())
        (outs / "raw_feature_bc_matrix.h5").unlink()
        message = "expected a 10x matrix .*got none"
    with pytest.raises(FileNotFoundError, match=message):
        read_visium(outs)


def test_raw_needs_a_raw_matrix(outs):
    (outs / "raw_feature_bc_matrix.h5").unlink()
    with pytest.raises(FileNotFoundError, match="expected a raw matrix, got the filtered one"):
        read_visium(outs, raw=True)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_visium(tmp_path / "nowhere")


def test_the_real_slide_of_space_ranger_1_is_read(real):
    folder = real("visium/sr1")
    found = at_any_workers(lambda n: read(folder, workers=n))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = scanpy.read_visium(folder)
    assert (found.X != expected.X).nnz == 0
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"].astype(float))
    assert library_of(found)["metadata"]["software_version"] == "spaceranger-1.0.0"
