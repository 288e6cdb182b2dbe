"""What makes a build stage a slide again, mend what was lost, or leave a slide out."""

import anndata
import numpy as np
import polars as pl
import pytest
import scipy.sparse

import stfast
from test_build import built, digests, one_thread, raw
from test_build_inputs import SMALL, manifest_of, picture, write_h5ad

__all__ = ["built", "one_thread", "picture", "raw"]


def test_files_behind_linked_folders_are_the_slides_too(raw, tmp_path):
    """Nextflow and Snakemake leave links; what changes behind one is staged anew."""
    from stfast.dataset import _stage

    real, slide = tmp_path / "real", tmp_path / "slide"
    for folder in (real / "spatial", slide):
        folder.mkdir(parents=True)
    (real / "spatial" / "positions.csv").write_text("a")
    (real / "loop").symlink_to(real)
    (slide / "spatial").symlink_to(real / "spatial")
    (slide / "other").symlink_to(real)
    found = [path.relative_to(slide).as_posix() for path in _stage.below(slide)]
    assert [name for name in found if name.endswith("positions.csv")] == [
        "other/spatial/positions.csv"
    ]
    row, settings = {"slide": "s", "path": str(slide)}, _stage.Settings(8, 24, None, 5, "png", 95)
    before = _stage.fingerprint(row, settings)
    (real / "spatial" / "positions.csv").write_text("b")
    assert _stage.fingerprint(row, settings) != before
    (real / ".stfast-build").touch()
    assert _stage.below(real) == []


def test_zeros_that_are_stored_are_no_genes(picture, tmp_path):
    path = write_h5ad(tmp_path / "s.h5ad", picture)
    adata = anndata.read_h5ad(path)
    dense = np.asarray(adata.X).copy()
    dense[:, 3] = 0
    full = np.ones_like(dense)
    adata.X = scipy.sparse.csr_matrix(full)
    adata.X.data[:] = dense.ravel()
    adata.write_h5ad(path)
    stfast.build(manifest_of(s=path), tmp_path / "out", **SMALL)
    dataset = stfast.Dataset(tmp_path / "out")
    spots = [int(name[1:]) for name in dataset.index["spot"]]
    assert dataset.index["n_genes"].to_list() == (dense > 0).sum(axis=1)[spots].tolist()
    values = np.load(tmp_path / "out" / "genes" / "counts" / "values.npy")
    assert values.all()


@pytest.mark.parametrize("hvg", ["pearson:5", "overlap:5"])
def test_counts_that_are_none_are_their_slides_fault(picture, tmp_path, hvg):
    whole = write_h5ad(tmp_path / "whole.h5ad", picture)
    counts = np.full((12, 8), 0.5, np.float32)
    parts = write_h5ad(tmp_path / "parts.h5ad", picture, counts=counts)
    report = stfast.build(
        manifest_of(whole=whole, parts=parts), tmp_path / "out", **{**SMALL, "hvg": hvg}
    )
    assert list(report.failed) == ["parts"]
    assert "expected raw counts, got fractions" in report.failed["parts"]
    assert len(stfast.Dataset(tmp_path / "out")) == 12


def test_columns_that_are_measured_are_not_the_tables(picture, tmp_path):
    path = write_h5ad(tmp_path / "s.h5ad", picture)
    table = manifest_of(s=path).with_columns(n_spots=pl.lit(None), median_counts=pl.lit("many"))
    with pytest.warns(UserWarning, match="n_spots, median_counts: measured by the build"):
        stfast.build(table, tmp_path / "out", **SMALL)
    slides = stfast.Dataset(tmp_path / "out").slides
    assert slides["n_spots"].to_list() == [12]
    assert not [name for name in slides.columns if name.endswith("_right")]


@pytest.mark.parametrize(
    "lost",
    ["tiles/00000.tar", "genes/hvg.npy", "genes/counts/values.npy", "genes/moments/s.parquet"],
)
def test_files_that_were_lost_are_made_again(picture, tmp_path, lost):
    path, out = write_h5ad(tmp_path / "s.h5ad", picture), tmp_path / "out"
    stfast.build(manifest_of(s=path), out, **SMALL)
    before = digests(out)
    (out / lost).unlink()
    report = stfast.build(manifest_of(s=path), out, **SMALL)
    assert report.staged == []
    assert digests(out) == before


@pytest.mark.parametrize("damage", ["indptr.npy", "done.json"])
def test_what_is_staged_in_part_is_staged_again(picture, tmp_path, damage):
    path, out = write_h5ad(tmp_path / "s.h5ad", picture), tmp_path / "out"
    stfast.build(manifest_of(s=path), out, **SMALL)
    before, file = digests(out), out / "staging" / "s" / damage
    file.write_text("{}") if file.suffix == ".json" else file.unlink()
    assert stfast.build(manifest_of(s=path), out, **SMALL).staged == ["s"]
    assert digests(out) == before


def test_a_dataset_that_stays_because_every_slide_failed_is_told_of(picture, tmp_path):
    path, out = write_h5ad(tmp_path / "s.h5ad", picture), tmp_path / "out"
    stfast.build(manifest_of(s=path), out, **SMALL)
    path.write_bytes(b"no HDF5")
    with pytest.warns(UserWarning, match="no slide is left: the dataset of an earlier build stays"):
        report = stfast.build(manifest_of(s=path), out, **SMALL)
    assert list(report.failed) == ["s"]
    assert len(stfast.Dataset(out)) == 12


def test_other_samples_in_a_folder_come_and_go(tmp_path):
    """A heap of GEO's files: one slide more is not a reason to stage the others again."""
    from stfast.dataset import _stage

    def put(sample, text="a"):
        for name in ("filtered_feature_bc_matrix.h5", "tissue_positions.csv"):
            (tmp_path / f"{sample}_{name}").write_text(text)

    def mark(sample):
        row = {"slide": "s", "path": str(tmp_path), "sample": sample}
        return _stage.fingerprint(row, _stage.Settings(8, 24, None, 5, "png", 95))

    put("GSM1_A")
    put("GSM2_B")
    (tmp_path / "scalefactors_json.json").write_text("{}")
    first, second = mark("GSM1_A"), mark("GSM2_B")
    put("GSM3_C")
    assert mark("GSM1_A") == first
    put("GSM2_B", "b")
    assert mark("GSM1_A") == first
    assert mark("GSM2_B") != second
    (tmp_path / "scalefactors_json.json").write_text("{ }")  # belongs to each
    assert mark("GSM1_A") != first
