"""`stfast tile` writes what the functions cut, wherever its spots come from."""

import numpy as np
import polars as pl
import pytest
from PIL import Image

import stfast
from oracles import tree


def test_tile_cuts_what_extract_tiles_cuts(found, picture, tmp_path):
    image, spots, _, xy = picture
    said = found("tile", image, "--spots", spots, "--size", 32, "-o", tmp_path / "t.npy")
    assert said["tiles"] == 9
    valid = np.empty(9, np.float32)
    expected = stfast.extract_tiles(image, xy, 32, valid=valid)
    assert (said["outside"], said["partial"]) == (0, int((valid < 1).sum()))
    assert said["amplification"] == 1
    assert said["bytes"] == (tmp_path / "t.npy").stat().st_size
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), expected)
    table = pl.read_csv(tmp_path / "t.csv")
    assert table.columns == ["spot", "x", "y", "valid"]
    np.testing.assert_array_equal(table.select("x", "y").to_numpy(), xy)
    assert tree(tmp_path) == ["in", "in/coord.csv", "in/he.png", "in/xy.csv", "t.csv", "t.npy"]


def test_tile_takes_the_papers_table_and_its_radius(found, picture, tmp_path):
    image, _, spots, xy = picture
    said = found("tile", image, "--spots", spots, "--size", 16, "-o", tmp_path / "t.npy")
    assert said["span_px"] == 21
    expected = stfast.extract_tiles(image, xy, 16, span=20.5)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), expected)
    assert pl.read_csv(tmp_path / "t.csv")["spot"].to_list() == [f"he_{i}x1" for i in range(9)]


def test_tile_turns_microns_into_pixels(found, picture, tmp_path):
    image, spots, _, xy = picture
    options = ("--spots", spots, "--size", 16, "--span-um", 20, "--mpp", 0.5)
    assert found("tile", image, *options, "-o", tmp_path / "t.npy")["span_px"] == 40
    expected = stfast.extract_tiles(image, xy, 16, span=40)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), expected)


def test_tile_takes_a_slide_and_drops_no_spot(found, st_folder, tmp_path):
    said = found("tile", st_folder, "--size", 8, "-o", tmp_path / "t.npy")
    assert (said["tiles"], said["outside"]) == (15, 1)
    adata = stfast.read(st_folder)
    span = adata.uns["spatial"]["mini"]["scalefactors"]["spot_diameter_fullres"]
    xy, valid = adata.obsm["spatial"], np.empty(15, np.float32)
    expected = stfast.extract_tiles(st_folder / "he.jpg", xy, 8, span=span, valid=valid)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), expected)
    table = pl.read_csv(tmp_path / "t.csv")
    np.testing.assert_array_equal(table["valid"].to_numpy().astype(np.float32), valid)
    assert table["spot"].to_list() == list(adata.obs_names)


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "parquet", "tsv", "folder"])
def test_tile_takes_spots_from_whatever_holds_them(found, st_folder, tmp_path, kind):
    adata = stfast.read(st_folder)
    spots = st_folder if kind == "folder" else tmp_path / f"spots.{kind}"
    x, y = adata.obsm["spatial"].T
    table = pl.DataFrame({"spot": adata.obs_names.to_list(), "x": x, "y": y})
    write = {"h5ad": adata.write_h5ad, "zarr": adata.write_zarr, "parquet": table.write_parquet}
    write |= {
        "tsv": lambda path: table.write_csv(path, separator="\t"),
        "folder": lambda path: None,
    }
    write[kind](spots)
    image = st_folder / "he.jpg"
    found("tile", image, "--spots", spots, "--size", 8, "--span", 12, "-o", tmp_path / "t.npy")
    valid = np.empty(15, np.float32)
    expected = stfast.extract_tiles(image, adata.obsm["spatial"], 8, span=12, valid=valid)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), expected)


def test_tile_lays_a_grid_over_tissue(found, tmp_path):
    picture = np.full((200, 300, 3), 240, np.uint8)
    picture[50:150, 100:200] = (180, 90, 150)
    Image.fromarray(picture).save(tmp_path / "he.png")
    words = ["--grid", "--size", 50, "--format", "folder", "-o", tmp_path / "tiles"]
    said = found("tile", tmp_path / "he.png", *words)
    names = sorted(path.stem for path in (tmp_path / "tiles").glob("*.png"))
    assert names == ["r1_c2", "r1_c3", "r2_c2", "r2_c3"]
    assert said["tiles"] == 4
    with Image.open(tmp_path / "tiles/r1_c2.png") as tile:
        np.testing.assert_array_equal(np.asarray(tile), picture[50:100, 100:150])


def test_windows_all_outside_are_written_and_said(found, picture, tmp_path):
    table = tmp_path / "far.csv"
    table.write_text("spot,x,y\na,-90000,-90000\n")
    words = ["--format", "wds", "--size", 8, "-o", tmp_path / "tiles"]
    said = found("tile", picture[0], "--spots", table, *words)
    assert (said["tiles"], said["outside"], said["share_of_codec"]) == (1, 1, None)


def test_radii_that_differ_are_refused(stfast_says, picture, tmp_path):
    table = tmp_path / "radii.csv"
    table.write_text("spot,xaxis,yaxis,r\na,50,50,10\nb,60,60,11\n")
    status, _, err = stfast_says("tile", picture[0], "--spots", table, "-o", tmp_path / "t.npy")
    assert status == 1
    assert "radii.csv: expected one radius for all spots" in err
