"""TileLoader among threads, processes and a GPU: nothing hangs, leaks or is overwritten.

The batches are those that test_loader.py holds against the oracle.
"""

import gc
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import oracles
import stfast
from oracles import run_python

torch = pytest.importorskip("torch")
TileLoader = stfast.TileLoader


def load(slides, epoch=0, **options):
    """An epoch as arrays: image, genes, coords, slide, index."""
    loader = TileLoader(slides, **{"size": 16, "batch_size": 32, "device": "cpu"} | options)
    loader.set_epoch(epoch)
    names = ("image", "genes", "coords", "slide", "index")
    batches = [[getattr(batch, name).numpy() for name in names] for batch in loader]
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("stfast-loader")]


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("leave", ["break", "drop", "raise"])
def test_leaving_early_neither_hangs_nor_leaks_a_thread(slides, leave):
    start = time.monotonic()
    for _ in range(6):
        batches = iter(TileLoader(slides, size=64, batch_size=4, prefetch=8, device="cpu"))
        next(batches)
        if leave == "break":
            batches.close()
        elif leave == "raise":
            with pytest.raises(KeyError):
                batches.throw(KeyError("enough"))
        del batches
    gc.collect()
    assert time.monotonic() - start < 20
    assert wait_for(lambda: not loader_threads())


def test_an_epoch_to_the_end_leaves_no_thread(slides):
    load(slides)
    assert wait_for(lambda: not loader_threads())


def test_two_epochs_may_run_side_by_side(slides):
    loader = TileLoader(slides, size=8, batch_size=8, device="cpu")
    pairs = list(zip(loader, loader, strict=True))
    for epoch, batches in enumerate(zip(*pairs, strict=True)):
        index = np.concatenate([b.index.numpy() for b in batches])
        np.testing.assert_array_equal(index, load(slides, epoch, size=8, batch_size=8)[4])


def test_a_batch_is_not_overwritten_while_it_is_held(slides):
    loader = TileLoader(slides, size=16, batch_size=8, shuffle=False, device="cpu")
    held = list(loader)
    image = np.concatenate([batch.image.numpy() for batch in held])
    np.testing.assert_array_equal(image, load(slides, shuffle=False)[0])


def epoch_elsewhere(pickled):
    """An epoch's tiles and order, in another process."""
    loader = pickle.loads(pickled)
    batches = list(loader)
    image = np.concatenate([batch.image.numpy() for batch in batches])
    return image, np.concatenate([batch.index.numpy() for batch in batches])


def test_a_loader_can_be_pickled_before_and_after_use(slides):
    loader = TileLoader(slides, size=16, batch_size=32, device="cpu")
    fresh = pickle.dumps(loader)
    for _ in loader:
        pass
    loader.set_epoch(0)
    expected = load(slides)
    for pickled in (fresh, pickle.dumps(loader)):
        image, index = epoch_elsewhere(pickled)
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(index, expected[4])


def test_a_loader_works_in_a_spawned_process(slides):
    loader = TileLoader(slides, size=16, batch_size=32, device="cpu", workers=2)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        image, index = pool.submit(epoch_elsewhere, pickle.dumps(loader)).result(timeout=120)
    expected = load(slides)
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(index, expected[4])


def test_a_loader_works_after_a_fork(slides, tmp_path):
    """The parent has used it, its pool and its cache; the child must not wait for its threads."""
    slides[0].write_h5ad(tmp_path / "slide.h5ad")
    out = run_python(f"""
        import os, anndata, stfast
        adata = anndata.read_h5ad({str(tmp_path / "slide.h5ad")!r})
        loader = stfast.TileLoader(adata, size=16, batch_size=8, device="cpu", workers=2)
        total = sum(int(batch.image.sum()) for batch in loader)
        child = os.fork()
        mine = sum(int(batch.image.sum()) for batch in loader)
        if child == 0:
            os._exit(0 if mine == total else 1)
        print(mine == total, os.waitpid(child, 0)[1])
    """)
    assert out.split() == ["True", "0"]


def test_a_block_that_breaks_in_mid_epoch_is_an_error_of_that_epoch(tmp_path):
    import tifffile

    adata = oracles.slide_with_picture(tmp_path, 0, codec="TIFF")
    path = tmp_path / "picture-0"
    options = {"photometric": "rgb", "tile": (32, 32), "compression": "deflate"}
    tifffile.imwrite(path, oracles.picture(180, 150), **options)
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages.first.dataoffsets[-1]
    path.write_bytes(path.read_bytes()[:start])
    adata.obsm["spatial"][60] = (140, 170)
    loader = TileLoader(adata, size=8, batch_size=4, shuffle=False, device="cpu")
    with pytest.raises(stfast.FormatError, match="block 5,4"):
        list(loader)
    assert wait_for(lambda: not loader_threads())


# --- CUDA --------------------------------------------------------------------------------------


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_on_cuda_equal_those_on_the_cpu(slides, prefetch):
    """Held to the end, so that a slot reused too early would show."""
    loader = TileLoader(slides, size=16, batch_size=8, prefetch=prefetch)
    assert loader.device.type == "cuda"
    held = list(loader)
    found = [
        np.concatenate([t.cpu().numpy() for t in column])
        for column in zip(*(b.tensors() for b in held), strict=True)
    ]
    for one, other in zip(found, load(slides, batch_size=8), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.cuda
@needs_cuda
def test_a_busy_stream_reads_batches_that_are_whole(slides):
    """The consumer computes slowly on its own stream; batches must not change under it."""
    expected = load(slides, batch_size=8)[0].astype(np.int64).sum()
    loader, total = TileLoader(slides, size=16, batch_size=8, prefetch=1), 0
    noise = torch.randn(2000, 2000, device="cuda")
    for batch in loader:
        for _ in range(10):
            noise = torch.tanh(noise @ noise)
        total += batch.image.long().sum()
    assert int(total) == expected
