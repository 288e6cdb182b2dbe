"""Readers of legacy Spatial Transcriptomics: the real samples, and folders made to measure.

Spot tables, counts and pictures come in few forms but with many small lies: transposed,
zipped, adjusted names, off-tissue rows. The radius is the paper's, bit for bit.
"""

import gzip
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

import oracles
import stfast
from oracles import at_any_workers, st_place
from stfast import FormatError, read, read_st

GENES = ["Actb", "Apoe", "Calm1"]


def table(text_or_frame, path):
    """Write a tab-separated table, zipped if the name says so."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write(
            text_or_frame if isinstance(text_or_frame, str) else text_or_frame.to_csv(sep="\t")
        )


def made(folder, *, counts="counts.tsv", transposed=False, spots=True, **changes):
    """An ST folder of twelve spots on a 320 × 340 picture; columns of the spot table change."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    places = [(x, y) for y in (3, 4, 5) for x in (2, 3, 4, 6)]
    frame = pd.DataFrame(rng.integers(0, 9, (12, 3)), columns=GENES)
    frame.index = [f"{x}x{y}" for x, y in places]
    table(frame.T if transposed else frame, folder / counts)
    Image.fromarray(oracles.picture(340, 320)).save(folder / "image.jpg")
    x, y = np.array(places).T
    columns = {"x": x, "y": y, "new_x": x + 0.125, "new_y": y - 0.25}
    columns |= {"pixel_x": x * 10.0 + 0.5, "pixel_y": y * 9.75}
    if spots:
        columns |= changes
        frame_of_spots = pd.DataFrame({k: v for k, v in columns.items() if v is not None})
        table(frame_of_spots.to_csv(sep="\t", index=False), folder / "spots.tsv")
    return frame, columns


# --- real slides -------------------------------------------------------------------------------


def assert_conventions(adata, picture):
    """What plots look for: counts, places, centres, one library with pictures and scales."""
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.int32
    assert {"in_tissue", "array_row", "array_col", "in_picture"} <= set(adata.obs)
    assert adata.obsm["spatial"].dtype == np.float64
    ((_, library),) = adata.uns["spatial"].items()
    assert library["metadata"]["source_image_path"] == str(picture)
    height, width = stfast.open_image(picture).shape
    for name, longest in (("hires", 2000), ("lowres", 600)):
        pixels, scale = library["images"][name], library["scalefactors"][f"tissue_{name}_scalef"]
        assert max(pixels.shape) <= longest
        np.testing.assert_allclose(pixels.shape[:2], (height * scale, width * scale), atol=1)
    factors = library["scalefactors"]
    assert {"spot_diameter_fullres", "fiducial_diameter_fullres", "microns_per_pixel"} <= set(
        factors
    )
    return factors


def test_mob11_has_its_spots_on_the_frame(real):
    """No spot table: pixel = ((x - 1) W / 32, (y - 1) H / 34), from the unrounded names."""
    path = real("st/mob11")
    found = read(path)
    counts = oracles.st_counts(path / "counts.tsv.gz")
    assert found.shape == (262, 16_218)
    assert (found.X != sparse.csr_matrix(counts.to_numpy())).nnz == 0
    assert list(found.obs_names) == list(counts.index)
    assert list(found.var_names) == list(counts.columns)
    names = [[float(part) for part in name.split("x")] for name in counts.index]
    with Image.open(path / "image.jpg") as image:
        width, height = image.size
    expected = (np.array(names) - 1) * [width / 32, height / 34]
    np.testing.assert_allclose(found.obsm["spatial"], expected, rtol=1e-12)
    places = [st_place(name) for name in counts.index]
    np.testing.assert_array_equal(found.obs[["array_col", "array_row"]], places)
    factors = assert_conventions(found, path / "image.jpg")
    assert factors["spot_diameter_fullres"] == width / 32 / 2
    assert factors["microns_per_pixel"] == pytest.approx(200 / (width / 32))
    assert found.obs["in_picture"].all()


def test_micro_has_its_spots_from_its_table(real):
    path = real("st/micro")
    found = at_any_workers(lambda n: read(path, workers=n))
    counts = oracles.st_counts(path / "counts.tsv")
    assert (found.X != sparse.csr_matrix(counts.to_numpy())).nnz == 0
    spots = pd.read_csv(path / "spots.tsv", sep="\t")
    by_place = spots.set_index(["x", "y"])[["pixel_x", "pixel_y"]]
    expected = by_place.loc[[st_place(name) for name in counts.index]]
    np.testing.assert_array_equal(found.obsm["spatial"], expected)
    span = spots["pixel_x"].max() - spots["pixel_x"].min()
    radius = span / (spots["new_x"].max() - spots["new_x"].min()) / 4
    factors = assert_conventions(found, path / "image.jpg")
    assert factors["spot_diameter_fullres"] == 2 * radius
    assert factors["microns_per_pixel"] == pytest.approx(200 / (4 * radius))


def test_a_2k_array_is_told_by_its_parity_and_its_lost_spots_are_said(real):
    path = real("st/mob2-2k")
    with pytest.warns(
        UserWarning, match=r"alignment\.tsv: expected a row for each of \d+ spots.*left out"
    ):
        found = read(path)
    counts = oracles.st_counts(path / "counts.tsv")
    spots = pd.read_csv(path / "alignment.tsv", sep="\t").set_index(["x", "y"])
    placed = [name for name in counts.index if st_place(name) in spots.index]
    assert list(found.obs_names) == placed
    assert 0 < len(placed) < len(counts)
    assert (found.X != sparse.csr_matrix(counts.loc[placed].to_numpy())).nnz == 0
    expected = spots.loc[[st_place(name) for name in placed]]
    np.testing.assert_array_equal(found.obsm["spatial"], expected[["pixel_x", "pixel_y"]])
    np.testing.assert_array_equal(found.obs["in_tissue"], expected["selected"])
    factors = assert_conventions(found, path / "image.jpg")
    # The nearest neighbour of a spot is a diagonal step away: 141 µm.
    unit = factors["spot_diameter_fullres"] * 2
    assert factors["microns_per_pixel"] == pytest.approx(100 / unit)


def test_the_radius_of_stimage_is_reproduced_bit_for_bit(tmp_path, real):
    coords = pd.read_csv(real("stimage/Human_Breast_Andersson_10142021_ST_A1_coord.csv"))
    low, high = coords["xaxis"].min(), coords["xaxis"].max()
    pixel_x, new_x = np.linspace(low, high, 12), np.linspace(0, 23.223, 12)
    made(tmp_path, pixel_x=pixel_x, new_x=new_x)
    library = read_st(tmp_path).uns["spatial"][tmp_path.name]
    assert library["scalefactors"]["spot_diameter_fullres"] / 2 == 54.328144511906295
    assert coords["r"].unique().tolist() == [54.328144511906295]


# --- made to measure ---------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("counts", ["counts.tsv", "counts.tsv.gz", "GSM1_counts_rep2.tsv"])
def test_counts_may_lie_on_their_side_or_be_zipped(tmp_path, transposed, counts):
    frame, columns = made(tmp_path, counts=counts, transposed=transposed)
    found = read(tmp_path)
    np.testing.assert_array_equal(found.X.toarray(), frame.to_numpy())
    assert list(found.obs_names) == list(frame.index)
    assert list(found.var_names) == GENES
    expected = np.column_stack([columns["pixel_x"], columns["pixel_y"]])
    np.testing.assert_array_equal(found.obsm["spatial"], expected)


def test_spots_are_joined_by_place_not_by_order(tmp_path):
    frame, columns = made(tmp_path)
    spots = pd.DataFrame(columns).sample(frac=1, random_state=0)
    table(spots.to_csv(sep="\t", index=False), tmp_path / "spots.tsv")
    found = read(tmp_path)
    assert list(found.obs_names) == list(frame.index)
    np.testing.assert_array_equal(found.obsm["spatial"][:, 0], columns["pixel_x"])


def test_rows_off_the_tissue_are_kept_and_marked(tmp_path):
    selected = np.arange(12) % 3 > 0
    made(tmp_path, selected=selected.astype(int))
    np.testing.assert_array_equal(read(tmp_path).obs["in_tissue"], selected)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("n", [4, 6, 7])
def test_spot_tables_have_4_6_or_7_columns_with_or_without_a_header(tmp_path, n, header):
    _, columns = made(tmp_path)
    frame = pd.DataFrame(columns)
    frame["selected"] = np.arange(12) % 2
    frame.iloc[:, :n].to_csv(tmp_path / "spots.tsv", sep="\t", index=False, header=header)
    found = read(tmp_path)
    if n == 4:
        x, y = (columns["new_x"] - 1) * 320 / 32, (columns["new_y"] - 1) * 340 / 34
    else:
        x, y = columns["pixel_x"], columns["pixel_y"]
    np.testing.assert_array_equal(found.obsm["spatial"], np.column_stack([x, y]))
    assert found.obs["in_tissue"].tolist() == (frame["selected"].tolist() if n == 7 else [1] * 12)
    new_x = columns["new_x"]
    factors = found.uns["spatial"][tmp_path.name]["scalefactors"]
    radius = (x.max() - x.min()) / (new_x.max() - new_x.min()) / 4
    assert factors["spot_diameter_fullres"] == 2 * radius


def test_a_table_without_adjusted_places_has_its_own(tmp_path):
    made(tmp_path, new_x=None, new_y=None)
    factors = read(tmp_path).uns["spatial"][tmp_path.name]["scalefactors"]
    assert factors["spot_diameter_fullres"] == 2 * 10 / 4


@pytest.mark.parametrize("width", [3, 5, 8])
def test_a_table_of_other_width_is_refused(tmp_path, width):
    made(tmp_path)
    text = "\n".join("\t".join(map(str, range(i, i + width))) for i in range(1, 13))
    (tmp_path / "spots.tsv").write_text(text)
    with pytest.raises(FormatError, match=rf"spots\.tsv: expected .*, got {width} columns"):
        read(tmp_path)


def test_a_2k_array_without_a_table_has_no_frame(tmp_path):
    made(tmp_path, spots=False)
    counts = pd.DataFrame(1, index=[f"{x}x{y}" for x, y in ((1, 1), (2, 4), (3, 3))], columns=GENES)
    table(counts, tmp_path / "counts.tsv")
    with pytest.raises(FormatError, match="expected a table of spots for a 2k array, got none"):
        read(tmp_path)


def test_the_kind_of_array_is_told(tmp_path, real):
    made(tmp_path)
    for folder, kind in ((tmp_path, "1k"), (real("st/mob2-2k"), "2k")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ((_, library),) = read(folder).uns["spatial"].items()
        assert library["metadata"]["array"] == kind


def test_spots_off_the_picture_are_flagged(tmp_path):
    _, columns = made(tmp_path)
    made(tmp_path, pixel_x=columns["pixel_x"] - 30)
    found = read(tmp_path)
    np.testing.assert_array_equal(found.obs["in_picture"], found.obsm["spatial"][:, 0] >= 0)
    assert not found.obs["in_picture"].all()


def test_genes_of_one_name_are_told_apart(tmp_path):
    frame, _ = made(tmp_path)
    frame.index.name = "spot"
    table(frame.to_csv(sep="\t").replace("Apoe", "Actb_"), tmp_path / "counts.tsv")
    assert read(tmp_path).var_names.is_unique


def test_a_picture_may_be_chosen_among_several(tmp_path):
    made(tmp_path)
    Image.new("RGB", (320, 340)).save(tmp_path / "mask.png")
    with pytest.raises(
        FormatError, match=r"expected one file as a picture, got \['image.jpg', 'mask.png'\]"
    ):
        read(tmp_path)
    library = read(tmp_path, image=tmp_path / "image.jpg").uns["spatial"][tmp_path.name]
    assert library["metadata"]["source_image_path"] == str(tmp_path / "image.jpg")


def test_what_was_read_says_so(tmp_path):
    made(tmp_path, spots=False)
    record = read(tmp_path).uns["stfast"]
    assert record["read_st"] == {"positions": "frame"}
    assert record["format_version"] == 1


# --- broken ------------------------------------------------------------------------------------


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a table of counts"):
        read_st(tmp_path)
    made(tmp_path)
    (tmp_path / "image.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="expected a picture, got none"):
        read_st(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_st(tmp_path / "nowhere")


COUNTS = {
    "an empty file": ("", "expected a tab-separated table"),
    "other names": ("\tA\tB\nx1\t1\t2\n", "spots named like 10x13, got 'x1'"),
    "one other name": ("\tA\n2x3\t1\nspot\t2\n", "spots named like 10x13, got 'spot'"),
    "no names": ("\tA\n\t1\n", "expected spots named like 10x13"),
    "text for a count": ("\tA\n2x3\tmany\n", "expected a table of numbers"),
    "half a count": ("\tA\n2x3\t1.5\n", "expected whole counts"),
    "a missing count": ("\tA\tB\n2x3\t1\t\n", "expected whole counts"),
    "NaN": ("\tA\n2x3\tnan\n", "expected"),
    "a negative count": ("\tA\n2x3\t-1\n", "expected"),
    "a count beyond 32 bits": ("\tA\n2x3\t4294967297\n", "expected"),
    "too many fields": ("\tA\n2x3\t1\t2\n", "expected"),
    "commas": (",A\n2x3,1\n", "expected"),
}


@pytest.mark.parametrize("fault", COUNTS)
def test_broken_counts_name_the_file_and_the_fault(tmp_path, fault):
    made(tmp_path)
    content, message = COUNTS[fault]
    (tmp_path / "counts.tsv").write_text(content)
    with pytest.raises(FormatError, match=rf"counts\.tsv: .*{message}"):
        read(tmp_path)


def test_counts_that_are_no_gzip_are_named(tmp_path):
    made(tmp_path, counts="counts.tsv.gz")
    whole = (tmp_path / "counts.tsv.gz").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20] + b"\xff" * 40, bytes(range(256))):
        (tmp_path / "counts.tsv.gz").write_bytes(content)
        with pytest.raises(FormatError, match=r"counts\.tsv\.gz: "):
            read(tmp_path)


SPOTS = {
    "no pixel_x": ({"pixel_x": None}, r"expected columns \['x', 'y'.*got"),
    "text for x": ({"x": ["a"] * 12}, "expected"),
    "text for a pixel": ({"pixel_y": ["a"] * 12}, "expected"),
    "text for selected": ({"selected": ["maybe"] * 12}, "expected"),
    "one place twice": ({"x": [2] * 12, "y": [3] * 12}, "expected each place"),
    "places elsewhere": ({"x": np.arange(100, 112)}, "expected a row for each of 12 spots"),
    "no spread of new_x": ({"new_x": [1.0] * 12}, "expected"),
    "no spread of pixel_x": ({"pixel_x": [1.0] * 12}, "expected"),
    "new_x lacks values": ({"new_x": [np.nan] * 12}, "expected"),
    "pixels are NaN": ({"pixel_x": ["nan"] * 12}, "expected"),
    "pixels are infinite": ({"pixel_x": ["inf", *range(11)]}, "expected"),
}


@pytest.mark.parametrize("fault", SPOTS)
def test_a_broken_spot_table_names_the_file_and_the_fault(tmp_path, fault):
    changes, message = SPOTS[fault]
    made(tmp_path, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FormatError, match=rf"spots\.tsv: .*{message}"):
            read(tmp_path)


def test_one_new_x_that_is_missing_does_not_make_the_radius_nan(tmp_path):
    _, columns = made(tmp_path)
    new_x = columns["new_x"].copy()
    new_x[5] = np.nan
    made(tmp_path, new_x=new_x)
    try:
        found = read(tmp_path).uns["spatial"][tmp_path.name]["scalefactors"]
    except FormatError:
        return
    made(tmp_path)
    expected = read(tmp_path).uns["spatial"][tmp_path.name]["scalefactors"]
    assert found["spot_diameter_fullres"] == expected["spot_diameter_fullres"]


def test_a_broken_picture_names_the_file(tmp_path):
    made(tmp_path)
    whole = (tmp_path / "image.jpg").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "image.jpg").write_bytes(content)
        with pytest.raises(FormatError, match=r"image\.jpg"):
            read(tmp_path)
