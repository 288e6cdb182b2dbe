"""Visium: Space Ranger 1 to 4 and what becomes of its files, against scanpy and squidpy's rules."""

import gzip
import shutil
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy

import oracles_readers as made
from oracles import assert_same, at_any_workers
from stfast import FormatError, read, read_visium


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


def test_barcodes_that_come_again_keep_their_position(outs):
    path = outs / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "a") as file:
        first = file["matrix/barcodes"][3]
        file["matrix/barcodes"][5] = first
    with pytest.warns(UserWarning, match="expected each barcode once, got 1 again"):
        found = read_visium(outs)
    name = first.decode()
    assert found.obs_names[5] == f"{name}-1"
    assert found.obs["barcode"].iloc[5] == name
    np.testing.assert_array_equal(found.obsm["spatial"][5], found.obsm["spatial"][3])


def test_an_option_that_a_reader_lacks_is_named(outs):
    with pytest.raises(ValueError, match=r"options of read_visium \(raw, sample, .* got bin_size"):
        read(outs, bin_size=8)


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
