"""What stands where in an epoch: samplers, ranks, and going on at any batch."""

import itertools

import numpy as np
import pytest

import stfast
from oracles import run_python

torch = pytest.importorskip("torch")
ArraySource, TileLoader = stfast.ArraySource, stfast.TileLoader

SIZES = [70, 45, 1, 64, 20]
N = sum(SIZES)
SAMPLERS = ("global", "block", "stratified", "within-slide", "balanced")


@pytest.fixture(scope="module")
def source():
    """Two hundred spots of five slides, a third without a label, tiles of one pixel."""
    rng = np.random.default_rng(0)
    slide = rng.permutation(np.repeat(np.arange(5), SIZES))
    label = np.array(["", "a", "b"], dtype=object)[rng.choice(3, N, p=[0.3, 0.6, 0.1])]
    image = rng.integers(0, 256, (N, 1, 1, 3), dtype=np.uint8)
    return ArraySource(image, np.zeros((N, 1), np.float32), slide=slide, label=label)


def batches(source, epoch=0, **options):
    """The rows of each batch of an epoch."""
    loader = TileLoader(source, **{"batch_size": 16, "device": "cpu", "seed": 4} | options)
    loader.set_epoch(epoch)
    return [batch.index.numpy() for batch in loader]


@pytest.mark.parametrize("sampler", SAMPLERS[:-1])
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_nothing_is_lost_or_seen_twice(source, sampler, block):
    epochs = []
    for epoch in (0, 1):
        index = np.concatenate(batches(source, epoch, sampler=sampler, block=block))
        np.testing.assert_array_equal(np.sort(index), np.arange(N))
        epochs.append(index)
    assert (epochs[0] != epochs[1]).any()


def test_blocks_stay_together_and_are_mixed_in_pools():
    """More blocks than a pool has: an epoch is still every row once."""
    n = 5000
    source = ArraySource(np.zeros((n, 1, 1, 3), np.uint8), np.zeros((n, 1), np.float32))
    index = np.concatenate(batches(source, sampler="block", block=2, batch_size=512))
    np.testing.assert_array_equal(np.sort(index), np.arange(n))
    first = np.unique(index[:2048] // 2)
    assert len(first) < 1.02 * 1024 + 2  # the first pool's 2048 rows are of 1024 blocks


def test_stratified_batches_have_each_slide_in_its_share(source):
    slide = source.spots.slide
    for rows in batches(source, sampler="stratified", batch_size=40)[:5]:
        shares = np.bincount(slide[rows], minlength=5)
        np.testing.assert_allclose(shares, np.array(SIZES) * 40 / N, atol=1.6)


def test_within_slide_batches_are_of_one_slide(source):
    slide = source.spots.slide
    counts = [len(set(slide[rows].tolist())) for rows in batches(source, sampler="within-slide")]
    whole = sum(size // 16 for size in SIZES)
    assert counts[:whole] == [1] * whole


def test_balanced_batches_have_labels_equally_and_reach_all_spots(source):
    label = source.spots.label
    rows = np.concatenate(batches(source, sampler="balanced"))
    assert len(rows) == (label >= 0).sum()
    counts = np.bincount(label[rows])
    assert abs(int(counts[0]) - int(counts[1])) <= 1
    rare, times = np.unique(rows[label[rows] == 1], return_counts=True)
    np.testing.assert_array_equal(rare, np.flatnonzero(label == 1))
    assert times.max() - times.min() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_two_and_eight_ranks_see_the_same_global_batches(source, sampler):
    options = {"sampler": sampler, "drop_last": True, "global_batch_size": 32}
    alone = batches(source, 2, **options)
    assert len(alone) > 2
    for world in (2, 8):
        ranks = [
            batches(source, 2, rank=rank, world_size=world, **options) for rank in range(world)
        ]
        assert {len(rank) for rank in ranks} == {len(alone)}
        for number, rows in enumerate(alone):
            parts = [rank[number] for rank in ranks]
            assert {len(part) for part in parts} == {32 // world}
            np.testing.assert_array_equal(np.stack(parts, axis=1).ravel(), rows)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_epoch_goes_on_at_any_batch_on_any_ranks(source, sampler):
    options = {"sampler": sampler, "drop_last": True, "global_batch_size": 32, "device": "cpu"}
    loader = TileLoader(source, seed=4, **options)
    whole = [batches(source, epoch, **options) for epoch in (0, 1)]
    for stop in range(len(loader) + 1):
        first = TileLoader(source, seed=4, prefetch=3, **options)
        list(itertools.islice(first, stop))
        state = first.state_dict()
        for world in (1, 2):
            ranks = []
            for rank in range(world):
                other = TileLoader(source, seed=4, rank=rank, world_size=world, **options)
                other.load_state_dict(state)
                assert other.state_dict() == state
                left = list(other) if stop < len(loader) else []
                ranks.append([b.index.numpy() for b in [*left, *other]])
            want = [*whole[0][stop:], *whole[1]]
            found = [np.stack(parts, axis=1).ravel() for parts in zip(*ranks, strict=True)]
            np.testing.assert_array_equal(np.stack(found), np.stack(want))


def test_a_state_of_something_else_is_refused(source):
    loader = TileLoader(source, batch_size=16, device="cpu")
    state = loader.state_dict()
    other = ArraySource(source.image[1:], np.zeros((N - 1, 1), np.float32))
    for changed, message in (
        (TileLoader(other, batch_size=16, device="cpu"), "expected spots"),
        (TileLoader(source, batch_size=8, device="cpu"), "expected global_batch_size 8, got 16"),
        (TileLoader(source, batch_size=16, seed=1, device="cpu"), "expected seed 1, got 0"),
        (TileLoader(source, batch_size=16, rows=[1, 2], device="cpu"), "expected spots"),
    ):
        with pytest.raises(ValueError, match=message):
            changed.load_state_dict(state)
    with pytest.raises(ValueError, match="expected version 1, got 7"):
        loader.load_state_dict({**state, "version": 7})


def test_the_last_batch_is_kept_on_one_rank_and_dropped_on_two(source):
    assert [len(rows) for rows in batches(source, batch_size=64)] == [64, 64, 64, 8]
    ranked = batches(source, batch_size=32, rank=1, world_size=2)
    assert [len(rows) for rows in ranked] == [32, 32, 32]


def test_ranks_are_those_of_the_process_group(source):
    """Two gloo processes see disjoint halves of each global batch."""
    out = run_python("""
        import os, numpy as np, torch, torch.multiprocessing as mp
        import stfast

        def work(rank, port):
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
            n = 100
            image, genes = np.zeros((n, 1, 1, 3), np.uint8), np.zeros((n, 1), np.float32)
            source = stfast.ArraySource(image, genes)
            loader = stfast.TileLoader(source, global_batch_size=20, device="cpu", workers=1)
            seen = torch.cat([batch.index for batch in loader])
            both = [torch.empty_like(seen) for _ in range(2)]
            torch.distributed.all_gather(both, seen)
            if rank == 0:
                print(len(loader), len(seen), len(torch.cat(both).unique()))
            torch.distributed.destroy_process_group()

        if __name__ == "__main__":
            import socket
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            contexts = mp.get_context("fork")
            both = [contexts.Process(target=work, args=(rank, port)) for rank in range(2)]
            for process in both: process.start()
            for process in both: process.join()
    """)
    assert out.split() == ["5", "50", "100"]


def test_the_report_says_how_slides_mix(source):
    def companions(**options):
        return TileLoader(source, batch_size=50, device="cpu", **options).shuffle_report()

    slide = source.spots.slide
    shuffled = companions()
    np.testing.assert_allclose(shuffled.expected, 49 * (np.bincount(slide) / N) ** 2 @ np.ones(5))
    assert abs(shuffled.companions - shuffled.expected) < 1.5
    assert companions(sampler="within-slide").companions > 1.5 * shuffled.companions
    assert "of the 49 others in a batch" in str(shuffled)
    rows = TileLoader(source, batch_size=50, shuffle=False, device="cpu")
    counts = [np.bincount(slide[r : r + 50]) for r in range(0, N, 50)]
    want = np.mean([(c * (c - 1)).sum() / 50 for c in counts])
    np.testing.assert_allclose(rows.shuffle_report().companions, want)


def test_no_rows_are_no_batches():
    source = stfast.ArraySource(np.zeros((4, 2, 2, 3), np.uint8), np.zeros((4, 1), np.float32))
    for sampler in ("global", "block", "stratified", "within-slide"):
        loader = stfast.TileLoader(source, rows=[], sampler=sampler, device="cpu")
        assert list(loader) == []
        assert loader.shuffle_report().batches == 0
