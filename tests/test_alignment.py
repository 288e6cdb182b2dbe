"""Do spots and picture agree? Generated slides put wrong in every way, and real ones left alone."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from anndata import AnnData
from PIL import Image
from scipy import ndimage, sparse

import stfast
from stfast.alignment import _slide

TURNS = {
    "mirrored left-right": lambda picture: picture[:, ::-1],
    "mirrored top-bottom": lambda picture: picture[::-1],
    "turned 180": lambda picture: picture[::-1, ::-1],
    "x/y swapped": lambda picture: picture.swapaxes(0, 1),
    # A picture that is turned one way is put right by the other.
    "turned 270": np.rot90,
    "turned 90": lambda picture: np.rot90(picture, -1),
    "x/y swapped, turned 180": lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
}
SCALES = {"lowres taken for full": 0.25, "full taken for lowres": 4.0}
HEIGHT, WIDTH = 380, 440


def smooth(rng, blur):
    """A random field from 0 to 1, equally much of each."""
    field = ndimage.gaussian_filter(rng.normal(size=(HEIGHT, WIDTH)), blur)
    return field.ravel().argsort().argsort().reshape(field.shape) / field.size


def painted(rng, *, fills):
    """A picture, which of its pixels are tissue, and of what kind they are."""
    y, x = np.indices((HEIGHT, WIDTH))
    middle = rng.uniform(0.4, 0.6, 2) * [HEIGHT, WIDTH]
    distance = np.hypot((y - middle[0]) / HEIGHT, (x - middle[1]) / WIDTH)
    tissue = np.ones((HEIGHT, WIDTH), bool)
    if not fills:
        tissue = distance + 0.25 * smooth(rng, 30) < rng.uniform(0.38, 0.5)
    kind = np.digitize(smooth(rng, 22), [0.3, 0.6, 0.8])
    colours = np.array([(225, 140, 180), (150, 90, 165), (235, 180, 205), (105, 65, 140)], float)
    pixels = np.where(tissue[..., None], colours[kind], [238, 237, 240])
    pixels = pixels + ndimage.gaussian_filter(rng.normal(0, 30, pixels.shape), (1, 1, 0))
    return np.clip(pixels, 0, 255).astype(np.uint8), tissue, kind


def array_of(technology):
    """Centres of the spots of an array that does not quite fill the picture."""
    pitch = {"ST": 19.0, "Visium": 12.0, "VisiumHD": 4.0}[technology]
    x, y = np.meshgrid(np.arange(30, WIDTH - 30, pitch), np.arange(22, HEIGHT - 22, pitch))
    if technology == "Visium":
        x[1::2] += pitch / 2
    return np.stack([x.ravel(), y.ravel()], axis=1)


def generated(seed, technology, *, fills=False, flat=False, all_spots=False):
    """A slide in memory, and its picture; ``flat``: expression follows nothing."""
    rng = np.random.default_rng(seed)
    picture, tissue, kind = painted(rng, fills=fills)
    xy = array_of(technology)
    column, row = xy.astype(int).T
    on = tissue[row, column]
    if not all_spots:
        xy, on, row, column = xy[on], on[on], row[on], column[on]
    profiles = rng.gamma(0.3, 1.0, (4, 60))
    profiles[:, 30:] = profiles[:1, 30:]  # half of the genes are the same everywhere
    depth = {"ST": 30, "Visium": 15, "VisiumHD": 0.5}[technology] * rng.gamma(3, 1 / 3, len(xy))
    where = rng.integers(0, 4, len(xy)) if flat else kind[row, column]
    counts = rng.poisson(profiles[where] * (depth * np.where(on, 1, 0.05))[:, None])
    return slide_of(picture, xy, on, sparse.csr_matrix(counts.astype(np.float32))), picture


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def slide_of(picture, xy, on, counts, lowres=0.25):
    obs = pd.DataFrame({"in_tissue": on.astype(int)}, index=[f"s{n}" for n in range(len(xy))])
    adata = AnnData(counts, obs=obs)
    adata.obsm["spatial"] = np.asarray(xy, float)
    factors = {"tissue_hires_scalef": 1.0, "tissue_lowres_scalef": lowres}
    library = {"images": {"hires": picture}, "scalefactors": factors, "metadata": {}}
    adata.uns["spatial"] = {"made": library}
    return adata


def wrongly(adata, picture):
    """The slide in each wrong way, by the name of what undoes it."""
    for name, turn in TURNS.items():
        other = adata.copy()
        other.uns["spatial"]["made"]["images"]["hires"] = np.ascontiguousarray(turn(picture))
        yield name, other
    for name, scale in SCALES.items():
        other = adata.copy()
        other.obsm["spatial"] = adata.obsm["spatial"] * scale
        yield name, other


@pytest.mark.timeout(600)
def test_wrong_placements_are_caught_and_right_ones_are_not():
    tried, caught, named, alarms, decided = 0, 0, 0, [], 0
    for technology in ("ST", "Visium", "VisiumHD"):
        for seed in range(6):
            adata, picture = generated(seed, technology, all_spots=seed % 2, fills=seed == 5)
            right = stfast.check_alignment(adata)
            alarms += [(technology, seed)] * (right.verdict == "misplaced")
            decided += right.verdict == "ok"
            for name, wrong in wrongly(adata, picture):
                found = stfast.check_alignment(wrong)
                tried += 1
                caught += found.verdict == "misplaced"
                named += found.best.removeprefix("array ") == name
    print(f"caught {caught} of {tried}, cause named {named}, {decided} of 18 right ones ok")
    assert not alarms
    assert caught >= 0.95 * tried
    assert named >= 0.95 * tried
    assert decided >= 17


def test_where_tissue_fills_the_frame_and_expression_is_flat_it_is_undecided():
    for seed in range(4):
        adata, picture = generated(seed, "Visium", fills=True, flat=True)
        cases = [adata, *(wrong for _, wrong in wrongly(adata, picture))]
        found = [stfast.check_alignment(case).verdict for case in cases[:8]]
        assert set(found) == {"undecided"}


def test_expression_that_follows_another_picture_raises_no_alarm():
    """Its regions are as large as the picture's, so some placement always fits best."""
    for seed in range(8):
        adata, _ = generated(seed, "ST", fills=True)
        other, _ = generated(seed + 100, "ST", fills=True)
        adata.X = other.X
        assert stfast.check_alignment(adata).verdict == "undecided"


def test_expression_alone_decides_where_tissue_fills_the_frame():
    adata, picture = generated(1, "Visium", fills=True)
    found = stfast.check_alignment(adata)
    assert (found.verdict, found.best, found.cause) == ("ok", "given", "")
    assert found.scores["tissue"].is_null().all()
    for name, wrong in wrongly(adata, picture):
        assert stfast.check_alignment(wrong).best.removeprefix("array ") == name


def test_tissue_alone_decides_where_there_are_no_counts():
    adata, picture = generated(2, "Visium", all_spots=True)
    bare = AnnData(obs=adata.obs, obsm=adata.obsm, uns=adata.uns)
    found = stfast.check_alignment(bare)
    assert found.verdict == "ok"
    assert found.scores["borders"].is_null().all()
    assert found.scores["tissue"][0] > 0.85
    _, wrong = next(iter(wrongly(bare, picture)))
    assert stfast.check_alignment(wrong).verdict == "misplaced"


def test_an_array_that_is_turned_in_its_place_is_caught():
    adata, _ = generated(3, "ST", all_spots=True)
    xy = adata.obsm["spatial"]
    adata.obsm["spatial"] = xy.min(axis=0) + xy.max(axis=0) - xy
    found = stfast.check_alignment(adata)
    assert (found.verdict, found.best) == ("misplaced", "array turned 180")
    assert found.cause == "the array is turned by 180°"


def test_the_table_says_it_all(tmp_path):
    adata, picture = generated(0, "Visium")
    found = stfast.check_alignment(adata)
    assert found.scores.columns == ["placement", "tissue", "borders", "lead"]
    assert found.scores["placement"][0] == "given"
    assert found.scores["lead"].is_sorted(descending=True)
    assert found.score == -found.scores["lead"][1]
    again = [stfast.check_alignment(adata, workers=n) for n in (1, 2, 5)]
    assert all(one.scores.equals(found.scores) for one in again)
    for one, name in zip(again, "ab", strict=False):
        one.picture(tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = pixels_of(tmp_path / "a.png")
    assert pixels.shape == (round(1000 * HEIGHT / WIDTH) + 34, 1000, 3)
    wrong = next(wrong for name, wrong in wrongly(adata, picture) if name == "x/y swapped")
    found = stfast.check_alignment(wrong)
    assert (found.best, found.cause) == ("x/y swapped", "x and y are swapped")
    found.picture(tmp_path / "two.png")
    assert pixels_of(tmp_path / "two.png").shape[1] > 1700


def test_a_slide_without_picture_spots_or_sense_is_told():
    adata, _ = generated(0, "ST")
    few = adata[:5].copy()
    with pytest.raises(ValueError, match="expected 10 spots in tissue or more, got 5"):
        stfast.check_alignment(few)
    blind = adata.copy()
    blind.uns["spatial"]["made"]["images"] = {}
    with pytest.raises(ValueError, match="made: expected a picture, got none"):
        stfast.check_alignment(blind)
    lost = adata.copy()
    lost.obsm["spatial"][3] = np.nan
    with pytest.raises(ValueError, match="expected finite coordinates"):
        stfast.check_alignment(lost)
    one = adata.copy()
    one.obsm["spatial"][:] = 5
    assert stfast.check_alignment(one).verdict == "undecided"


def sectioned(side, tissue, roi, *, signal):
    """A picture with a square of tissue, and spots on a part of it; all are in tissue."""
    rng = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(rng.normal(size=(side, side)), 15)
    texture /= texture.std()
    y, x = np.indices((side, side))
    on = (np.minimum(x, y) >= tissue[0]) & (np.maximum(x, y) < tissue[1])
    colours = np.array([200, 120, 170]) + texture[..., None] * [12, 25, 15]
    picture = np.clip(np.where(on[..., None], colours, 245), 0, 255).astype(np.uint8)
    steps = np.arange(roi[0], roi[1], 20) + 10.0
    xy = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    column, row = xy.astype(int).T
    level = rng.normal(0, 0.3, 200) + np.zeros((len(xy), 1))
    if signal:
        level[:, :100] += 0.5 * texture[row, column][:, None] * rng.normal(size=100)
    counts = sparse.csr_matrix(rng.poisson(np.exp(level)).astype(np.float32))
    return slide_of(picture, xy, np.ones(len(xy), bool), counts, lowres=0.6)


@pytest.mark.parametrize(("tissue", "roi"), [((160, 660), (170, 390)), ((100, 700), (110, 420))])
@pytest.mark.parametrize("signal", [False, True])
def test_spots_on_a_part_of_the_tissue_raise_no_alarm(tissue, roi, signal):
    found = stfast.check_alignment(sectioned(1000, tissue, roi, signal=signal))
    assert found.verdict == ("ok" if signal else "undecided")


def test_borders_that_decide_for_the_given_placement_are_not_outvoted():
    """Too many spots lie off the tissue here for the array to be taken for one within it."""
    adata = sectioned(1000, (160, 660), (110, 390), signal=True)
    found = stfast.check_alignment(adata)
    given = found.scores.filter(pl.col("placement") == "given")["borders"].item()
    assert given > 2 * found.scores.filter(pl.col("placement") != "given")["borders"].max()
    assert found.verdict != "misplaced"


# --- real slides -------------------------------------------------------------------------------


def mob(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stfast.read(path)


def giotto(path):
    """The picture shows 2364.5 to 6522.5 across, 2620.75 to 5425.25 down."""
    picture = pixels_of(path / "deg_image.png")
    table = pd.read_csv(path / "visium_DG_locs.txt", sep=" ", header=None).to_numpy()
    xy = (table * [1, -1] - [2364.5, 2620.75]) * picture.shape[1] / (6522.5 - 2364.5)
    counts = pd.read_csv(path / "visium_DG_expr.txt.gz", sep=r"\s+", index_col=0)
    on = np.ones(len(xy), bool)
    return slide_of(picture, xy, on, sparse.csr_matrix(counts.to_numpy(np.float32).T))


def dlpfc(path):
    """It has no counts here, and only the lowres picture."""
    picture = pixels_of(path / "tissue_lowres_image.png")
    table = pd.read_csv(path / "tissue_positions_list.txt", header=None, index_col=0)
    xy, on = table[[5, 4]].to_numpy() * 0.045004502, table[1].to_numpy() == 1
    return slide_of(picture, xy, on, None)


REAL = {"st/mob11": mob, "st/mob2-2k": mob, "visium/giotto-mini": giotto,
        "visium/dlpfc-151673": dlpfc}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_slides_raise_no_alarm(name, real):
    assert stfast.check_alignment(REAL[name](real(name))).verdict == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_slides_put_wrong_are_caught(name, real):
    adata = REAL[name](real(name))
    library = next(iter(adata.uns["spatial"].values()))
    path = library["metadata"].get("source_image_path")
    picture = pixels_of(path) if path else library["images"]["hires"]
    alike = slide_of(picture, adata.obsm["spatial"], adata.obs["in_tissue"].to_numpy(), adata.X)
    for cause, wrong in wrongly(alike, picture):
        found = stfast.check_alignment(wrong)
        assert (found.verdict, found.best) == ("misplaced", cause)


def test_the_command_says_it_and_draws_it(slide, stfast_says, found, tmp_path, real):
    told = found("check", slide)
    assert told["verdict"] == stfast.check_alignment(stfast.read(slide)).verdict
    assert len(told["scores"]) > 14
    folder = real("st/mob11")
    mirrored = tmp_path / "mirrored.png"
    Image.fromarray(pixels_of(folder / "image.jpg")[:, ::-1]).save(mirrored)
    status, out, _ = stfast_says(
        "check", folder, "--image", mirrored, "--picture", tmp_path / "look.png"
    )
    assert status == 1
    assert "misplaced" in out
    assert "the picture is mirrored left to right" in out
    assert pixels_of(tmp_path / "look.png").shape[1] > 1500


def test_places_add_up_what_bytes_count():
    """Squares with 200 counts each, of which a place has many: bytes do not hold their sum."""
    rng = np.random.default_rng(4)
    xy, rows = rng.random((4_000, 2)) * 100, np.arange(4_000)
    counts = sparse.csr_matrix(np.full((4_000, 2), 200))
    _, expected = _slide._places(xy, AnnData(counts), rows)
    _, found = _slide._places(xy, AnnData(counts.astype(np.uint8)), rows)
    np.testing.assert_array_equal(found.toarray(), expected.toarray())
    assert found.sum() == 200 * 2 * 4_000
