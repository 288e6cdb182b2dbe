"""The door between Python and Rust: how many threads, who may interrupt, who may fork.

Calls that crash, hang or are killed would take the test run with them, so each such script
runs in a Python of its own, with a time limit.
"""

import itertools
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

import oracles
import stfast
from oracles import run_python
from stfast import _check, aggregate_bins

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")

# --- how many workers --------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch):
    """No STFAST_WORKERS in the environment."""
    monkeypatch.delenv("STFAST_WORKERS", raising=False)
    return monkeypatch


def test_an_argument_wins_over_the_environment(bare):
    bare.setenv("STFAST_WORKERS", "3")
    assert _check.workers(7) == 7
    assert _check.workers(np.int64(2)) == 2
    assert _check.workers(None) == 3
    bare.setenv("STFAST_WORKERS", "")
    assert _check.workers(None) >= 1


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " ", "²", "1e3"])
def test_a_bad_environment_is_named(bare, text):
    bare.setenv("STFAST_WORKERS", text)
    with pytest.raises(
        ValueError, match=r"(STFAST_WORKERS|workers): expected an integer of at least 1"
    ):
        _check.workers(None)


@pytest.mark.parametrize("workers", [0, -1, 1.0, "2", True, np.nan])
def test_a_bad_number_of_workers_is_named(workers):
    with pytest.raises(ValueError, match="workers: expected an integer of at least 1, got"):
        _check.workers(workers)


@pytest.mark.parametrize("workers", [10**5, 2**70])
def test_an_absurd_number_of_workers_is_refused_or_does_no_harm(workers):
    """More threads than a system has must not hang it, nor end the process."""
    out = run_python(
        f"""
        import faulthandler
        import numpy as np
        from stfast import aggregate_bins
        places = np.zeros(3, int)
        faulthandler.dump_traceback_later(15, exit=True)  # the call alone: imports take seconds
        try:
            aggregate_bins(np.eye(3), rows=places, cols=places, factor=1, workers={workers})
        except (ValueError, OverflowError) as error:
            assert "workers" in str(error)
        print("done")
    """,
        timeout=100,
    )
    assert out.split() == ["done"]


@linux
def test_the_default_is_what_the_process_may_use(bare):
    out = run_python("""
        import os
        from stfast import _check
        may = sorted(os.sched_getaffinity(0))
        print(_check.workers(None) <= len(may))
        os.sched_setaffinity(0, may[:1])
        print(_check.workers(None))
    """)
    assert out.split() == ["True", "1"]


class Workers:
    """A data set that tells how many workers it would take."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return _check.workers(None)


def test_one_is_the_default_within_torchs_workers(bare):
    data = pytest.importorskip("torch.utils.data")
    found = list(data.DataLoader(Workers(), num_workers=1, multiprocessing_context="fork"))
    assert [int(n) for n in found] == [1, 1]


# --- the pool ----------------------------------------------------------------------------------


def work(workers=None, seed=0, **options):
    """A call that takes a few milliseconds."""
    rng = np.random.default_rng(seed)
    matrix = sparse.random(2000, 300, 0.05, format="csr", random_state=rng)
    rows, cols = np.divmod(np.arange(2000), 50)
    return aggregate_bins(matrix, rows=rows, cols=cols, factor=3, workers=workers, **options)


def pool_threads():
    """Names of this process's threads that the door made."""
    names = [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")]
    return sorted(name for name in names if name.startswith("stfast-"))


@linux
def test_calls_share_one_pool():
    out = run_python("""
        import sys, time
        sys.path.insert(0, "tests")
        from test_door import work, pool_threads
        for workers in (3, 3, 2, 4, 4):
            for _ in range(20):
                work(workers)
        end = time.monotonic() + 5
        while len(pool_threads()) > 4 and time.monotonic() < end:
            time.sleep(0.01)
        print(*pool_threads())
    """)
    assert out.split() == [f"stfast-{i}" for i in range(4)]


def test_many_python_threads_may_call_at_once():
    expected, found = {seed: work(1, seed) for seed in range(12)}, {}

    def call(seed):
        for workers in (1, 2, 5, 1 + seed % 4):
            found[seed, workers] = work(workers, seed)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({seed for seed, _ in found}) == 12
    for (seed, _), bins in found.items():
        oracles.assert_same(tuple(bins), tuple(expected[seed]))


def test_the_errors_of_the_door_can_be_pickled():
    error = pickle.loads(pickle.dumps(stfast.FormatError("a.tif: expected b, got c")))
    assert type(error) is stfast.FormatError
    assert isinstance(error, ValueError)
    assert str(error) == "a.tif: expected b, got c"


# --- fork and spawn ----------------------------------------------------------------------------

FORK = """
    import os, sys, threading, time
    sys.path.insert(0, "tests")
    import numpy as np
    from oracles import assert_same
    from test_door import work

    expected = tuple(work(2))

    def child():
        for workers in (2, 3):
            assert_same(tuple(work(workers)), expected)
"""


def forked(body):
    """Run a body after the start of FORK; what its children end with is printed."""
    return run_python(FORK.replace("\n    ", "\n") + body, timeout=60)


def test_a_forked_child_has_a_pool_of_its_own():
    """Children, children of children, and workers of multiprocessing."""
    out = forked("""
from multiprocessing import get_context
with get_context("fork").Pool(2) as pool:
    for bins in pool.starmap(work, [(2,), (1,), (5,), (2,)]):
        assert_same(tuple(bins), expected)
for depth in range(3):
    pid = os.fork()
    if pid == 0:
        child()
        continue
    print(os.waitpid(pid, 0)[1], flush=True)
    os._exit(0)
""")
    assert out.split() == ["0"] * 3


def test_a_fork_in_the_middle_of_another_threads_call_is_safe():
    out = forked("""
stop = threading.Event()
def busy():
    while not stop.is_set():
        work(2)
thread = threading.Thread(target=busy)
thread.start()
codes = []
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    codes.append(os.waitpid(pid, 0)[1])
stop.set()
thread.join()
child()
print(*codes)
""")
    assert out.split() == ["0"] * 10


def test_a_spawned_worker_works():
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(work, 2).result(timeout=60)
    oracles.assert_same(tuple(found), tuple(work(2)))


# --- Ctrl-C, the interpreter's lock, progress --------------------------------------------------

LONG = """
    import os, signal, sys, threading, time
    import numpy as np
    from scipy import sparse
    import stfast
    from stfast import _core

    start = threading.Event()
    TILED, PLAIN = {tiled!r}, {plain!r}

    def bins(n=200_000, **options):
        ends = np.arange(n + 1)
        csr = sparse.csr_matrix((np.ones(n), ends[1:] * 0, ends), shape=(n, 1 << 22))
        stfast.aggregate_bins(csr[:9], rows=ends[:9], cols=ends[:9], factor=1, workers=2)
        start.set()
        stfast.aggregate_bins(csr, rows=ends[1:], cols=ends[1:], factor=1, workers=2, **options)

    def pearson():
        rng = np.random.default_rng(0)
        csr = sparse.random(400_000, 20_000, 2e-4, format="csr", random_state=rng)
        rows, genes = np.unique(csr.sum(axis=1)), np.ravel(csr.sum(axis=0))
        model = (100.0, 600.0, float(genes.sum()))
        start.set()
        _core.zero_residuals((rows, np.ones(len(rows))), genes, model, 2)

    def tiles(name, n=6000, size=128, **options):
        centers = np.random.default_rng(0).uniform(0, 2048, (n, 2))
        out = np.zeros((n, size, size, 3), np.uint8)
        stfast.extract_tiles(name, centers[:1], size, span=500, workers=2)
        start.set()
        stfast.extract_tiles(name, centers, size, span=500, out=out, workers=2, **options)

    def load():
        import anndata
        adata = anndata.AnnData(sparse.csr_matrix(np.ones((1024, 1))))
        adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 2048, (1024, 2))
        library = dict(scalefactors=dict(spot_diameter_fullres=700))
        adata.uns["spatial"] = dict(s=library | dict(metadata=dict(source_image_path=TILED)))
        loader = stfast.TileLoader(adata, size=224, batch_size=1024, device="cpu", workers=1)
        start.set()
        next(iter(loader))
"""

INTERRUPT = """
    sent = []
    def kill():
        start.wait(30)
        time.sleep(0.4)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=kill, daemon=True).start()
    try:
        {call}
    except KeyboardInterrupt:
        print(f"{{time.monotonic() - sent[0]:.3f}}")
    else:
        print("not interrupted")
    again = [stfast.extract_tiles(TILED, [[100, 100]], 64, workers=n) for n in (2, 1)]
    assert (again[0] == again[1]).all()
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A picture of 2048² pixels in many blocks and in one."""
    import tifffile

    folder = tmp_path_factory.mktemp("pictures")
    data = oracles.picture(2048, 2048)
    tifffile.imwrite(folder / "tiled.tif", data, photometric="rgb", tile=(128, 128))
    Image.fromarray(data).save(folder / "plain.png", compress_level=1)
    return {"tiled": str(folder / "tiled.tif"), "plain": str(folder / "plain.png")}


@pytest.mark.parametrize("call", ["bins()", "pearson()", "tiles(TILED)", "tiles(PLAIN)", "load()"])
def test_ctrl_c_ends_a_long_call_within_half_a_second(pictures, call):
    code = LONG.format(**pictures) + INTERRUPT.format(call=call)
    out = run_python(code, timeout=100, memory_gb=12).strip()
    assert out != "not interrupted", "the call was too short to say"
    assert float(out) < 0.5


def test_other_python_threads_run_during_a_call(pictures):
    """The interpreter is released: a thread that wakes every 5 ms keeps its pace."""
    code = (
        LONG.format(**pictures)
        + """
    ticks, stop = [], threading.Event()
    def tick():
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.005)
    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.monotonic()
    tiles(TILED, n=900)
    end = time.monotonic()
    stop.set()
    thread.join()
    pauses = np.diff([begin, *(t for t in ticks if begin < t < end), end])
    print(end - begin, pauses.max())
"""
    )
    took, pause = map(float, run_python(code, timeout=100).split())
    assert pause < took / 2


def test_progress_rises_during_a_call_and_ends_at_its_total(pictures):
    code = (
        LONG.format(**pictures)
        + """
    told = []
    here = threading.get_ident()
    tiles(TILED, n=600, progress=lambda n: told.append((n, threading.get_ident() == here)))
    counts = [n for n, _ in told]
    print(counts == sorted(counts), counts[-1], all(same for _, same in told), len(set(counts)) > 2)
"""
    )
    assert run_python(code, timeout=100).split() == ["True", "600", "True", "True"]


def test_an_error_in_progress_ends_the_call_and_is_raised(pictures):
    code = (
        LONG.format(**pictures)
        + """
    class Enough(Exception):
        pass
    def stop(done):
        raise Enough(done)
    stfast.aggregate_bins  # imported now, not while the call is timed
    begin = time.monotonic()
    try:
        bins(progress=stop)
    except Enough:
        print(time.monotonic() - begin < 10)
"""
    )
    assert run_python(code, timeout=100).split() == ["True"]


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_may_itself_call_stfast(workers):
    """It runs in the caller's thread, while the pool is busy with the outer call."""
    inner = []

    def again(done):
        inner.extend(tuple(work(n)) for n in (workers, 3))

    outer = work(workers, progress=again)
    assert inner
    for bins in itertools.chain(inner, [tuple(outer)]):
        oracles.assert_same(bins, tuple(work(1)))


def test_progress_that_cannot_be_called_raises():
    with pytest.raises(TypeError):
        work(1, progress=5)
