"""10x matrices: against scanpy's readers, in every layout that is about, and broken."""

import gzip
import warnings

import h5py
import numpy as np
import pytest
import scanpy
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import oracles_readers as made
from oracles import assert_same, at_any_workers
from stfast import FormatError, _core, read, read_10x


def assert_equal_to_scanpy(found, expected):
    assert found.shape == expected.shape
    assert found.X.format == "csr"
    assert (sparse.csr_matrix(found.X) != sparse.csr_matrix(expected.X)).nnz == 0
    assert list(found.obs_names) == list(expected.obs_names)
    expected.var_names_make_unique()
    assert list(found.var_names) == list(expected.var_names)
    for column in set(found.var) & set(expected.var):
        assert list(found.var[column]) == list(expected.var[column]), column


def read_as_scanpy(path, **options):
    """Read at 1, 2 and 5 workers; compare with scanpy; give back."""
    found = at_any_workers_of_all(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".h5":
            expected = scanpy.read_10x_h5(path, gex_only=False, **options)
        else:
            expected = scanpy.read_10x_mtx(path, gex_only=False)
    assert_equal_to_scanpy(found, expected)
    return found


def at_any_workers_of_all(path, **options):
    def call(workers):
        adata = read_10x(path, workers=workers, **options)
        return adata.X, adata.obs, adata.var

    matrix, obs, var = at_any_workers(call)
    found = read_10x(path, **options)
    assert_same((found.X, found.obs, found.var), (matrix, obs, var))
    return found


LAYOUTS = {
    "python": {},
    "rust": {"compression_opts": 1, "chunks": (655,)},
    "no shuffle": {"shuffle": False, "chunks": (2048,)},
    "contiguous": {"compression": None, "shuffle": False, "chunks": None, "maxshape": None},
    "lzf": {"compression": "lzf"},
    "float64 data": {"types": {"data": "<f8"}},
    "float32 data": {"types": {"data": "<f4"}},
    "uint16 data": {"types": {"data": "<u2"}},
    "int64 data": {"types": {"data": "<i8"}},
    "big-endian": {"types": {"data": ">i4", "indices": ">i8", "indptr": ">i8"}},
    "uint32 indices": {"types": {"indices": "<u4"}},
    "int32 everywhere": {"types": {"indices": "<i4", "indptr": "<i4"}},
    "vlen strings": {"texts": "vlen"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_writers_layout_is_read(tmp_path, layout):
    path = made.write_10x(tmp_path / "a.h5", made.counts(150, 40), **LAYOUTS[layout])
    found = read_as_scanpy(path)
    assert found.X.dtype == np.int32
    assert found.X.nnz > 0


def test_a_matrix_without_counts_is_read(tmp_path):
    path = made.write_10x(tmp_path / "a.h5", made.counts(50, 9, density=0))
    assert read_as_scanpy(path).X.nnz == 0


def test_a_file_that_says_nothing_of_itself_is_read(tmp_path):
    path = made.write_10x(tmp_path / "a.h5", made.counts(50, 9))
    with h5py.File(path, "a") as file:
        for name in list(file.attrs):
            del file.attrs[name]
        del file["matrix/features/feature_type"], file["matrix/features/genome"]
    found = read_10x(path)
    assert list(found.var) == ["gene_ids"]
    assert found.X.sum() == made.counts(50, 9).sum()


def test_the_probe_matrix_of_scanpy_is_read(real):
    found = read_as_scanpy(real("visium/probe/raw_probe_bc_matrix.h5"))
    columns = {"probe_ids", "probe_region", "gene_name", "filtered_probes", "gene_ids"}
    assert columns <= set(found.var)
    assert found.obs["filtered_barcodes"].dtype == bool


def test_the_matrix_of_visium_is_read(real):
    read_as_scanpy(real("visium/sr1/filtered_feature_bc_matrix.h5"))


def test_genes_of_one_name_are_numbered_as_scanpy_does(tmp_path, caplog):
    path = made.write_10x(tmp_path / "a.h5", made.counts(50, 9))
    with h5py.File(path, "a") as file:
        file["matrix/features/name"][:4] = [b"A", b"A", b"B", b"A"]
    with caplog.at_level("INFO", "stfast"):
        found = read_10x(path)
    assert found.var_names[:4].tolist() == ["A", "A-1", "B", "A-2"]
    assert caplog.text.count("2 gene symbols come again") == 1


def test_barcodes_that_come_again_are_numbered_and_said(tmp_path):
    cells = made.barcodes(50)
    cells[7] = cells[3]
    path = made.write_10x(tmp_path / "a.h5", made.counts(50, 9), cells)
    with pytest.warns(UserWarning, match=r"a\.h5: expected each barcode once, got 1 again") as said:
        found = read_10x(path)
    assert len(said) == 1
    assert found.obs_names[7] == f"{cells[3]}-1"


def test_several_genomes_of_old_files_must_be_chosen(tmp_path):
    matrices = {"hg19": made.counts(30, 9, 1), "mm10": made.counts(30, 7, 2)}
    path = made.write_legacy(tmp_path / "a.h5", matrices)
    with pytest.raises(ValueError, match=r"genome= as one of \['hg19', 'mm10'\], got None"):
        read_10x(path)
    with pytest.raises(ValueError, match="got 'hg38'"):
        read_10x(path, genome="hg38")
    for genome in matrices:
        found = read_as_scanpy(path, genome=genome)
        assert set(found.var["genome"]) == {genome}
    only = made.write_legacy(tmp_path / "b.h5", {"hg19": matrices["hg19"]})
    assert_equal_to_scanpy(read_10x(only), scanpy.read_10x_h5(only))


def test_genomes_of_new_files_are_kept_or_chosen(tmp_path):
    genomes = ["GRCh38"] * 5 + ["mm10"] * 4
    path = made.write_10x(tmp_path / "a.h5", made.counts(50, 9), genomes=genomes)
    assert list(read_as_scanpy(path).var["genome"]) == genomes
    assert read_as_scanpy(path, genome="mm10").n_vars == 4
    with pytest.raises(ValueError, match=r"genome= as one of \['GRCh38', 'mm10'\], got 'x'"):
        read_10x(path, genome="x")


def test_large_counts_become_int64_and_fractions_stay(tmp_path, caplog):
    matrix = made.counts(50, 9).astype(np.int64)
    matrix.data[3] = 2**40
    path = made.write_10x(tmp_path / "a.h5", matrix, types={"data": "<i8"})
    found = read_10x(path)
    assert found.X.dtype == np.int64
    assert found.X.data[3] == 2**40
    path = made.write_10x(tmp_path / "b.h5", matrix / 4.0, types={"data": "<f8"})
    found = read_10x(path)
    assert found.X.dtype == np.float64
    np.testing.assert_array_equal(found.X.data, matrix.data / 4.0)
    assert "expected whole counts, got fractions" in caplog.text


def test_a_gzipped_file_is_read(tmp_path):
    path = made.write_10x(tmp_path / "a_filtered_feature_bc_matrix.h5", made.counts(50, 9))
    expected = read_10x(path)
    made.gzip_in_place(path)
    for found in (read_10x(f"{path}.gz"), read(f"{path}.gz")):
        assert_same((found.X, found.obs, found.var), (expected.X, expected.obs, expected.var))


# --- three texts -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_triplets_are_read_as_scanpy_reads_them(tmp_path, version, zipped):
    matrix = made.counts(150, 40)
    folder = made.write_triplet(tmp_path / "m", matrix, version=version, zipped=zipped)
    found = at_any_workers_of_all(folder)
    assert found.X.dtype == np.int32
    assert (found.X != matrix).nnz == 0
    assert found.X.has_canonical_format
    if zipped == (version == 3):  # the two that scanpy knows
        assert_equal_to_scanpy(found, scanpy.read_10x_mtx(folder))
    single = read_10x(next(folder.glob("matrix.mtx*")))
    assert (single.X != matrix).nnz == 0


def test_prefixed_triplets_are_read(tmp_path):
    for sample in ("GSM1_A", "GSM2_B"):
        made.write_triplet(tmp_path / "m", made.counts(50, 9, len(sample)), prefix=f"{sample}_")
    with pytest.raises(FormatError, match="sample= as one of them, got GSM1_A, GSM2_B"):
        read_10x(tmp_path / "m")
    with pytest.raises(ValueError, match=r"sample= as one of those there, got 'C' \(GSM1_A, GSM2"):
        read_10x(tmp_path / "m", sample="C")
    found = read_10x(tmp_path / "m", sample="GSM2_B")
    direct = read_10x(tmp_path / "m/GSM2_B_matrix.mtx.gz")
    assert_equal_to_scanpy(found, direct)
    assert_equal_to_scanpy(found, scanpy.read_10x_mtx(tmp_path / "m", prefix="GSM2_B_"))


def mtx(text, tmp_path, dtype="int32", workers=2):
    path = tmp_path / "matrix.mtx"
    path.write_text(text)
    (data, indices, indptr), n = _core.read_mtx(path, dtype, workers)
    return sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n))


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 30),
    cols=st.integers(1, 30),
    field=st.sampled_from(["integer", "real", "pattern"]),
    shuffled=st.booleans(),
)
def test_any_matrix_market_file_equals_scipys(
    *, seed, rows, cols, field, shuffled, tmp_path_factory
):
    tmp_path = tmp_path_factory.mktemp("mtx")
    rng = np.random.default_rng(seed)
    matrix = sparse.random(rows, cols, 0.3, "coo", rng=rng)
    matrix.data = np.ceil(matrix.data * 1000) / (1 if field == "integer" else 8)
    scipy.io.mmwrite(tmp_path / "a.mtx", matrix, field=field, symmetry="general", precision=17)
    text = (tmp_path / "a.mtx").read_text().splitlines()
    start = next(i for i, line in enumerate(text) if line[0] != "%") + 1
    if shuffled:
        text[start:] = rng.permutation(text[start:])
    text.insert(1, "% a comment")
    (tmp_path / "a.mtx").write_text("\n".join(text))
    expected = sparse.csr_matrix(made.read_mtx(tmp_path / "a.mtx").T)
    kind = "float64" if field == "real" else "int32"
    found = at_any_workers(lambda n: mtx("\r\n".join(text), tmp_path, kind, n))
    found.sum_duplicates()
    assert (found != expected).nnz == 0


def test_many_pieces_are_put_together_in_order(tmp_path):
    """More text than one thread takes at a time, sorted and not."""
    rng = np.random.default_rng(5)
    matrix = sparse.random(3000, 5000, 0.02, "csc", rng=rng)
    matrix.data = rng.integers(1, 50, matrix.nnz)
    folder = made.write_triplet(tmp_path / "m", sparse.csr_matrix(matrix.T.astype(np.int32)))
    found = at_any_workers_of_all(folder)
    assert (found.X != matrix.T).nnz == 0
    lines = gzip.decompress((folder / "matrix.mtx.gz").read_bytes()).decode().splitlines()
    order = rng.permutation(len(lines) - 3)
    lines[3:] = [lines[3 + i] for i in order]
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    shuffled = at_any_workers_of_all(folder)
    assert_same(shuffled.X, found.X)


def test_a_symmetric_matrix_is_both_halves(tmp_path):
    text = "%%MatrixMarket matrix coordinate integer symmetric\n3 3 3\n1 1 5\n2 1 6\n3 2 7\n"
    found = mtx(text, tmp_path)
    assert found.toarray().tolist() == [[5, 6, 0], [6, 0, 7], [0, 7, 0]]


def test_the_largest_numbers(tmp_path):
    start = "%%MatrixMarket matrix coordinate integer general\n1 1 1\n1 1 "
    with pytest.raises(OverflowError, match="int32"):
        mtx(start + str(2**31), tmp_path)
    assert mtx(start + str(2**62), tmp_path, "int64").data[0] == 2**62
    with pytest.raises(OverflowError, match="int64"):
        mtx(start + str(2**63), tmp_path, "int64")
    assert mtx(start + "1e3", tmp_path, "float64").data[0] == 1000


HEAD = "%%MatrixMarket matrix coordinate integer general\n"
BROKEN_MTX = {
    "empty": ("", "first line: expected %%MatrixMarket"),
    "array": ("%%MatrixMarket matrix array real general\n1 1\n1\n", "first line: expected"),
    "complex": (HEAD.replace("integer", "complex") + "1 1 0\n", "field: expected integer"),
    "skew": (HEAD.replace("general", "skew-symmetric") + "1 1 0\n", "symmetry: expected"),
    "no sizes": (HEAD + "% only a comment\n", "line of sizes: expected.*got the end"),
    "two sizes": (HEAD + "3 3\n", "line of sizes"),
    "symmetric oblong": (HEAD.replace("general", "symmetric") + "2 3 0\n", "line of sizes"),
    "huge": (HEAD + f"1 {2**40} 0\n", "line of sizes"),
    "row zero": (HEAD + "3 3 1\n0 1 1\n", 'within the sizes, got "0 1 1"'),
    "row beyond": (HEAD + "3 3 1\n4 1 1\n", "within the sizes"),
    "column beyond": (HEAD + "3 3 1\n1 4 1\n", "within the sizes"),
    "negative row": (HEAD + "3 3 1\n-1 1 1\n", "within the sizes"),
    "words": (HEAD + "3 3 1\na b c\n", "within the sizes"),
    "no value": (HEAD + "3 3 1\n1 1\n", "row, column and value"),
    "too many": (HEAD + "3 3 1\n1 1 1 1\n", "row, column and value"),
    "value a word": (HEAD + "3 3 1\n1 1 x\n", "expected numbers"),
    "fewer entries": (HEAD + "3 3 2\n1 1 1\n", "entries: expected 2, got 1"),
    "more entries": (HEAD + "3 3 1\n1 1 1\n2 1 1\n", "entries: expected 1, got 2"),
}


@pytest.mark.parametrize("fault", BROKEN_MTX)
def test_a_broken_matrix_market_file_is_named(tmp_path, fault):
    text, message = BROKEN_MTX[fault]
    with pytest.raises(FormatError, match=rf"{message}.*matrix\.mtx"):
        mtx(text, tmp_path)


def test_broken_triplets_name_the_file(tmp_path):
    folder = made.write_triplet(tmp_path / "m", made.counts(50, 9))
    packed = (folder / "matrix.mtx.gz").read_bytes()
    (folder / "matrix.mtx.gz").write_bytes(packed[:-20])
    with pytest.raises(FormatError, match=r"expected a whole gzip file.*matrix\.mtx\.gz"):
        read_10x(folder)
    (folder / "matrix.mtx.gz").write_bytes(packed)
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress(b"a\nb\n"))
    with pytest.raises(FormatError, match=r"barcodes\.tsv\.gz: expected 50 barcodes, got 2"):
        read_10x(folder)
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected barcodes\.tsv, got none"):
        read_10x(folder)


def test_a_transposed_matrix_is_told_so(tmp_path):
    folder = made.write_triplet(tmp_path / "m", made.counts(50, 9))
    turned = made.read_mtx(folder / "matrix.mtx.gz").T
    (folder / "matrix.mtx.gz").unlink()
    scipy.io.mmwrite(folder / "matrix.mtx", turned, field="integer")
    with pytest.raises(FormatError, match=r"expected 9 barcodes, as the matrix .*transposed"):
        read_10x(folder)


def test_negative_counts_in_text_are_refused(tmp_path):
    folder = made.write_triplet(tmp_path / "m", made.counts(50, 9), zipped=False)
    (folder / "matrix.mtx").write_text(HEAD + "9 50 1\n1 1 -3\n")
    with pytest.raises(FormatError, match=r"matrix\.mtx: expected counts from 0 on"):
        read_10x(folder)


def test_what_is_no_matrix_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FormatError, match="expected a 10x matrix"):
        read_10x(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.h5"):
        read_10x(tmp_path / "gone.h5")
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(FormatError, match=r"a\.h5: expected a 10x"):
        read_10x(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_group("other")
    with pytest.raises(FormatError, match=r"b\.h5: expected a 10x.*got \['other'\]"):
        read_10x(tmp_path / "b.h5")
