"""The command line for counts: bins, conversion, and what is said of a Visium slide."""

import anndata
import numpy as np
import pytest

import oracles_readers as made
import stfast


def test_bin_keeps_bins_off_the_tissue_when_told(found, slide, tmp_path):
    said = found("bin", slide, "--raw", "-o", tmp_path / "b.h5ad")
    assert said["bins"] == stfast.read(slide, raw=True).n_obs > stfast.read(slide).n_obs


@pytest.mark.parametrize(
    ("name", "options"), [("a.h5ad", []), ("a.zarr", []), ("data", ["--slide", "mine"])]
)
def test_convert_writes_what_was_read(found, slide, tmp_path, name, options):
    said = found("convert", slide, tmp_path / name, "--bin-size", 16, *options)
    expected = stfast.read(slide, bin_size=16)
    assert (said["spots"], said["genes"]) == expected.shape
    written = {
        "a.h5ad": anndata.read_h5ad,
        "a.zarr": anndata.read_zarr,
        "data": lambda path: stfast.read_stimage(path, "mine"),
    }[name](tmp_path / name)
    assert (written.X != expected.X).nnz == 0
    np.testing.assert_array_equal(written.obsm["spatial"], expected.obsm["spatial"])


def test_info_says_what_a_visium_slide_is(found, tmp_path):
    said = found("info", made.write_visium(tmp_path / "sample/outs"))
    assert said["library"] == "sample"
    assert said["metadata"]["source_image"] == "hires"
    assert said["scalefactors"]["spot_diameter_fullres"] == 26
