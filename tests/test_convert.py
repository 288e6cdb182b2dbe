"""Conversion: what is written is read back, by stfast and by those who made the formats."""

import anndata
import numpy as np
import pytest

import oracles
import oracles_readers as made
from oracles import assert_same
from stfast import h5, read, read_stimage, write_stimage
from stfast.convert import KINDS, kind_of, save


@pytest.fixture(scope="module")
def visium(tmp_path_factory):
    return read(made.write_visium(tmp_path_factory.mktemp("v") / "sample/outs", full=True))


@pytest.mark.parametrize("which", ["visium", "bins"])
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_slide_comes_back_from_h5ad_and_zarr(request, tmp_path, which, kind):
    # anndata makes categories of texts when it writes.
    slide = request.getfixturevalue(which).copy()
    path = save(slide, tmp_path / f"a.{kind}")
    found = anndata.read_h5ad(path) if kind == "h5ad" else anndata.read_zarr(path)
    assert (found.X != slide.X).nnz == 0
    np.testing.assert_array_equal(found.obsm["spatial"], slide.obsm["spatial"])
    ((name, library),) = found.uns["spatial"].items()
    expected = slide.uns["spatial"][name]
    assert library["scalefactors"] == expected["scalefactors"]
    assert dict(library["metadata"]) == expected["metadata"]
    np.testing.assert_array_equal(library["images"]["hires"], expected["images"]["hires"])
    if kind == "h5ad":
        assert_same(h5.read_h5ad(path), found)
        assert_same(read(path), found)


def test_a_slide_comes_back_from_the_layout_of_stimage(bins, tmp_path):
    save(bins, tmp_path / "data", "stimage")
    found = read_stimage(tmp_path / "data", "slide")
    assert (found.X != bins.X).nnz == 0
    assert list(found.obs_names) == list(bins.obs_names)
    np.testing.assert_array_equal(found.obsm["spatial"], bins.obsm["spatial"])
    for column in ("array_row", "array_col"):
        np.testing.assert_array_equal(found.obs[column], bins.obs[column])
    old, new = (a.uns["spatial"]["slide"]["scalefactors"] for a in (bins, found))
    for name in ("spot_diameter_fullres", "bin_size_um", "microns_per_pixel"):
        assert new[name] == old[name]
    assert (tmp_path / "data/VisiumHD/image/slide.png").exists()


def test_progress_ends_at_the_number_of_spots(bins, tmp_path):
    calls = []
    write_stimage(bins, tmp_path, "a", progress=calls.append)
    assert calls[-1] >= bins.n_obs
    assert calls == sorted(calls)


def test_the_kind_is_told_by_the_name(tmp_path):
    names = {"a.h5ad": "h5ad", "a.zarr": "zarr", "folder": "stimage", "a.xlsx": ""}
    assert {name: kind_of(tmp_path / name) for name in names} == names


def test_other_kinds_are_refused_and_leave_nothing(bins, tmp_path):
    with pytest.raises(ValueError, match=r"to: expected one of .*got '\.xlsx'"):
        save(bins, tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="got 'other'"):
        save(bins, tmp_path / "a.h5ad", "other")
    with pytest.raises(FileNotFoundError, match="gone"):
        save(bins, tmp_path / "gone/a.h5ad")
    assert oracles.tree(tmp_path) == []
    assert set(KINDS) == {"h5ad", "zarr", "spatialdata", "stimage"}


def test_a_failure_leaves_what_was_there(bins, tmp_path):
    (tmp_path / "a.h5ad").write_text("old")
    broken = bins.copy()
    broken.uns["cannot be written"] = object()
    with pytest.raises(Exception, match="object"):
        save(broken, tmp_path / "a.h5ad")
    assert oracles.tree(tmp_path) == ["a.h5ad"]
    assert (tmp_path / "a.h5ad").read_text() == "old"
