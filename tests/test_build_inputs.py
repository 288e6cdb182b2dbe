"""What users give a build by mistake, and disks and limits that end in the middle of one."""

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import polars as pl
import pytest
import tifffile
import zarr
from PIL import Image

import oracles
import oracles_readers as made
import stfast
from test_build import SETTINGS, built, digests, one_thread, raw
from test_build_technologies import write_st

__all__ = ["built", "one_thread", "raw"]

SMALL = {**SETTINGS, "shard_bytes": 60_000}


def manifest_of(**paths):
    return pl.DataFrame({"slide": list(paths), "path": list(map(str, paths.values()))})


def write_h5ad(path, image, *, counts=None, n=12, seed=0):
    """A slide as h5ad that names its picture."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2, (n, 8)).astype(np.float32) if counts is None else counts
    adata = anndata.AnnData(counts)
    adata.obs_names = [f"s{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    adata.obsm["spatial"] = rng.uniform(30, 120, (adata.n_obs, 2))
    library = {
        "scalefactors": {"spot_diameter_fullres": 20.0, "tissue_hires_scalef": 1.0},
        "metadata": {"source_image_path": str(image)},
    }
    adata.uns["spatial"] = {"made": library}
    adata.write_h5ad(path)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "he.png"
    Image.fromarray(oracles.picture(150, 160)).save(path)
    return path


# --- the table ----------------------------------------------------------------------------------


def test_names_that_differ_only_in_case_are_told(raw, tmp_path):
    table = pl.concat([raw, raw[:1].with_columns(slide=pl.lit("B"))])
    with pytest.raises(ValueError, match="each slide once, got 'B' again"):
        stfast.build(table, tmp_path / "out", **SMALL)


def test_the_same_image_for_two_slides_is_told(raw, picture, tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to(picture)
    table = raw.with_columns(image=pl.Series([str(picture), str(link), None]))
    with pytest.raises(ValueError, match=r"an image for each slide, got '.*link.png' for two"):
        stfast.build(table, tmp_path / "out", **SMALL)


def test_the_same_picture_in_two_folders_is_warned_of(tmp_path):
    slides = {name: write_st(tmp_path / name, 0) for name in ("a", "b")}
    with pytest.warns(UserWarning, match="a, b: expected a picture each, got the same one"):
        stfast.build(manifest_of(**slides), tmp_path / "out", **SMALL)


def test_a_manifest_edited_between_runs(raw, tmp_path):
    """A slide's other facts change the tables alone; a slide that returns is not redone."""
    out = tmp_path / "out"
    stfast.build(raw, out, **SMALL)
    first = digests(out)
    edited = raw.with_columns(tissue=pl.lit("lung"))
    assert stfast.build(edited, out, **SMALL).staged == []
    changed = {name for name, digest in digests(out).items() if first[name] != digest}
    assert changed == {"slides.parquet", "README.md", "dataset.json", "report.html"}
    assert stfast.build(raw[1:], out, **SMALL).dropped == ["b"]
    assert not (out / "slides/b.zarr").exists()
    assert stfast.build(raw, out, **SMALL).staged == []
    assert digests(out) == first


def test_a_folder_that_only_looks_like_a_build_is_left_alone(raw, tmp_path):
    for name in ("staging", "tiles"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected an empty folder or one of a build"):
        stfast.build(raw, tmp_path, **SMALL)
    assert (tmp_path / "tiles/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "value"), [("quality", 0), ("size", 0), ("size", 70_000), ("tiles", "gif")]
)
def test_options_that_do_not_fit_are_told_before_anything_is_made(raw, tmp_path, option, value):
    with pytest.raises(ValueError, match=f"{option}: expected"):
        stfast.build(raw, tmp_path / "out", **SMALL | {option: value})
    assert not (tmp_path / "out").exists()


# --- slides -------------------------------------------------------------------------------------


def test_slides_without_spots_or_counts_fail_alone(raw, picture, tmp_path):
    empty = write_h5ad(tmp_path / "empty.h5ad", picture, counts=np.zeros((0, 8), np.float32))
    silent = write_h5ad(tmp_path / "silent.h5ad", picture, counts=np.zeros((5, 8), np.float32))
    table = pl.concat([raw.select("slide", "path")[:1], manifest_of(empty=empty, silent=silent)])
    report = stfast.build(table, tmp_path / "out", **SMALL)
    assert "expected spots, got none" in report.failed["empty"]
    assert "expected counts, got none in 5 spots" in report.failed["silent"]
    assert set(stfast.Dataset(tmp_path / "out").index["slide"]) == {"b"}
    report = stfast.build(table[1:], tmp_path / "none", **SMALL)
    assert (report.n_spots, list(report.failed)) == (0, ["empty", "silent"])


def test_a_spot_without_counts_is_kept(picture, tmp_path):
    counts = np.random.default_rng(0).poisson(2, (9, 8)).astype(np.float32)
    counts[4] = 0
    path = write_h5ad(tmp_path / "a.h5ad", picture, counts=counts)
    stfast.build(manifest_of(a=path), tmp_path / "out", **SMALL)
    dataset = stfast.Dataset(tmp_path / "out")
    row = dataset.index["spot"].to_list().index("s4")
    assert not dataset.hvg[row].any()
    assert dataset.index["n_counts"][row] == 0


@pytest.mark.parametrize("number", [">f4", ">i2"])
def test_an_h5ad_may_hold_numbers_that_scipy_does_not(picture, tmp_path, number):
    counts = np.random.default_rng(1).poisson(2, (12, 8))
    path = write_h5ad(tmp_path / "a.h5ad", picture, counts=counts.astype(number))
    stfast.build(manifest_of(a=path), tmp_path / "out", **SMALL)
    index = stfast.Dataset(tmp_path / "out").index
    spots = index["spot"].str.slice(1).cast(int).to_list()
    assert index["n_counts"].to_list() == counts.sum(axis=1)[spots].tolist()


def test_a_changed_picture_that_an_h5ad_names_is_seen(picture, tmp_path):
    table = manifest_of(a=write_h5ad(tmp_path / "a.h5ad", picture))
    out = tmp_path / "out"
    assert stfast.build(table, out, **SMALL).staged == ["a"]
    assert stfast.build(table, out, **SMALL).staged == []
    Image.fromarray(255 - oracles.picture(150, 160)).save(picture)
    assert stfast.build(table, out, **SMALL).staged == ["a"]


def link_elsewhere(group, kind, other):
    """Make a group's ``data`` lie in another file."""
    values = group["data"][:]
    del group["data"]
    if kind == "link":
        group["data"] = h5py.ExternalLink(str(other), "/secret")
    elif kind == "storage":
        other.write_bytes(values.tobytes())
        external = [(str(other), 0, values.nbytes)]
        group.create_dataset("data", values.shape, values.dtype, external=external)
    else:
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(str(other), "secret", values.shape, values.dtype)
        group.create_virtual_dataset("data", layout)
    if kind != "storage":
        with h5py.File(other, "w") as file:
            file["secret"] = values


@pytest.mark.parametrize("kind", ["link", "storage", "virtual"])
@pytest.mark.parametrize("technology", ["visium", "hd", "h5ad"])
def test_data_in_other_files_are_refused(picture, tmp_path, technology, kind):
    if technology == "visium":
        path = made.write_visium(tmp_path / "v/outs", full=True)
        files, where = list(path.glob("*.h5")), "matrix"
    elif technology == "hd":
        path = stfast.synthesize_visium_hd(tmp_path / "hd", side_um=64, n_genes=40, mpp=0.5)
        files, where = list(path.rglob("*matrix.h5")), "matrix"
    else:
        from scipy import sparse

        counts = sparse.csr_matrix(np.random.default_rng(0).poisson(2, (9, 8)), dtype=np.float32)
        path = write_h5ad(tmp_path / "a.h5ad", picture, counts=counts)
        files, where = [path], "X"
    for number, name in enumerate(files):
        with h5py.File(name, "r+") as file:
            link_elsewhere(file[where], kind, tmp_path / f"other{number}.h5")
    report = stfast.build(manifest_of(a=path), tmp_path / "out", **SMALL)
    assert "expected all data in the file itself" in report.failed["a"]


def test_label_and_macro_pictures_of_svs_are_never_written(tmp_path):
    """They show names of patients. All pictures that are stored are of the tissue."""
    svs = tmp_path / "slide.svs"
    tissue, label = oracles.picture(900, 800), np.full((60, 64, 3), (255, 0, 255), np.uint8)
    about = "Aperio Image Library v1\n800x900|AppMag = 4|MPP = 2.5"
    with tifffile.TiffWriter(svs) as file:
        options = {"photometric": "rgb", "metadata": None, "compression": "deflate"}
        file.write(tissue, tile=(64, 64), description=about, **options)
        file.write(tissue[::4, ::4], description=about, **options)
        file.write(label, subfiletype=1, description="Aperio\nlabel 64x60", **options)
        file.write(label[:50], subfiletype=9, description="Aperio\nmacro 64x50", **options)
    with tifffile.TiffFile(svs) as file:
        assert [series.name for series in file.series][-2:] == ["Label", "Macro"]
    out = tmp_path / "out"
    stfast.build(manifest_of(a=write_h5ad(tmp_path / "a.h5ad", svs)), out, **SMALL)
    outs = made.write_visium(tmp_path / "v/outs")
    visium = manifest_of(v=outs).with_columns(image=pl.lit(str(svs)))
    assert not stfast.build(visium, tmp_path / "v-out", **SMALL).failed
    pictures = [*pictures_in(out), *pictures_in(tmp_path / "v-out")]
    assert len(pictures) >= 14
    for picture in pictures:
        magenta = (picture[..., 0] > 240) & (picture[..., 1] < 15) & (picture[..., 2] > 240)
        assert not magenta.any()


def pictures_in(out):
    """Every picture that a dataset holds: tiles, and what the slides' AnnData store."""
    yield from _tiles(out)
    for store in (out / "slides").glob("*.zarr"):
        group = zarr.open_group(store, mode="r")
        yield from (a[:] for _, a in group.members(None) if getattr(a, "ndim", 0) == 3)


def _tiles(out):
    for shard, start, length in (
        stfast.Dataset(out).index.select("shard", "offset", "length").iter_rows()
    ):
        data = (out / f"tiles/{shard:05}.tar").read_bytes()[start : start + length]
        yield np.asarray(Image.open(io.BytesIO(data)))


def test_a_slide_of_a_dataset_becomes_spatialdata(tmp_path):
    pytest.importorskip("spatialdata", reason="make test-contract")
    outs = made.write_visium(tmp_path / "v/outs", full=True)
    stfast.build(manifest_of(v=outs), tmp_path / "out", **SMALL)
    found = stfast.to_spatialdata(stfast.Dataset(tmp_path / "out").adata("v"))
    expected = stfast.to_spatialdata(stfast.read(outs))
    assert (found["table"].X != expected["table"].X).nnz == 0
    assert set(found.images) == set(expected.images)


# --- limits of the machine ----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk that is mounted anew with any number of MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options])]
        done = subprocess.run([*command, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [60, 300, 700, 1200, 2000])
def test_a_full_disk_is_told_and_the_build_resumed(raw, built, small_disk, kilobytes):
    """Whatever is the file that fills it."""
    out = small_disk(f"{kilobytes}k") / "out"
    try:
        report = stfast.build(raw, out, **SMALL)
    except OSError as error:
        assert "No space left" in str(error)  # noqa: PT017 -- told by the merge, or by the slides
    else:
        assert report.failed
        assert all("No space left" in fault for fault in report.failed.values())
    small_disk("100m", "remount")
    assert not stfast.build(raw, out, **SMALL).failed
    assert digests(out) == digests(built)


@pytest.mark.slow
def test_many_slides_under_few_open_files(tmp_path):
    """40 slides, 64 open files: built by processes, merged, and read."""
    table = manifest_of(**{f"s{n}": write_st(tmp_path / f"s{n}", n) for n in range(40)})
    table.write_parquet(tmp_path / "table.parquet")
    code = """
import sys, resource, polars, stfast
from stfast.dataset import _pool
_pool.FEW_SPOTS = 0
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
report = stfast.build(polars.read_parquet(sys.argv[1]), sys.argv[2], size=16, hvg="overlap:3",
                      workers=2)
assert not report.failed, report.failed
dataset = stfast.Dataset(sys.argv[2])
for batch in dataset.loader(batch_size=32, genes="counts", workers=2):
    pass
print(len(dataset))
"""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 64
    command = [sys.executable, "-c", code, tmp_path / "table.parquet", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(40 * 12)
    assert Path(tmp_path / "out/slides/s39.zarr").is_dir()
