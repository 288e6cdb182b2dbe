"""TileLoader where ranks, workers, states and names meet: what once went wrong without a word."""

import numpy as np
import pandas as pd
import pytest

import stfast

torch = pytest.importorskip("torch")
ArraySource, TileLoader = stfast.ArraySource, stfast.TileLoader


def arrays(n=64, **columns):
    image = np.random.default_rng(0).integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)
    return ArraySource(image, np.zeros((n, 1), np.float32), **columns)


def loader_of(source, **options):
    return TileLoader(source, **{"batch_size": 8, "device": "cpu", "workers": 1} | options)


def rows(batches):
    return [batch.index.tolist() for batch in batches]


# --- workers and states -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "stop"), [(7, 0), (7, 5), (7, 6), (7, 7), (8, 1), (8, 4), (8, 8)])
def test_torchdata_resumes_in_worker_processes(n, stop):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def made():
        loader = loader_of(arrays(8 * n), in_workers=True)
        return stateful.StatefulDataLoader(loader, batch_size=None, num_workers=2)

    whole = rows(made())
    first, second = made(), made()
    batches = iter(first)
    begun = rows(next(batches) for _ in range(stop))
    second.load_state_dict(first.state_dict())
    rest = rows(second)
    assert begun + rest == whole
    assert len(rows(second)) == n


def test_a_state_of_a_worker_is_taken_by_as_many_workers(monkeypatch):
    from stfast import loader as module

    class Info:
        id, num_workers = 1, 2

    loader = loader_of(arrays(), in_workers=True)
    monkeypatch.setattr(module, "get_worker_info", Info)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    assert state["part"] == [1, 2]
    again = loader_of(arrays(), in_workers=True)
    again.load_state_dict(state)
    Info.num_workers = 3
    with pytest.raises(ValueError, match="state: expected 2 workers, got 3"):
        iter(again)
    monkeypatch.setattr(module, "get_worker_info", lambda: None)
    with pytest.raises(ValueError, match="state: expected 2 workers, got none"):
        iter(again)


def test_an_end_on_one_rank_is_the_next_epoch_on_two():
    one = loader_of(arrays(60), batch_size=16)
    batches = iter(one)
    for _ in range(3):
        next(batches)
    two = loader_of(arrays(60), global_batch_size=16, rank=0, world_size=2)
    assert len(two) == 3
    two.load_state_dict(one.state_dict())
    assert two.epoch == 1
    assert len(list(two)) == 3


def test_a_loader_without_batches_stays_where_it_is():
    with pytest.warns(UserWarning, match="4 spots fill no global batch of 8: no batches"):
        loader = loader_of(arrays(4), drop_last=True)
    for _ in range(3):
        loader.load_state_dict(loader.state_dict())
    assert loader.state_dict()["epoch"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -3}, "expected batch from 0 on, got -3"),
        ({"batch": None}, "expected batch from 0 on, got None"),
        ({"epoch": "1"}, "expected epoch from 0 on, got '1'"),
        ({"seed": 5}, "expected seed 0, got 5"),
        ({"version": 7}, "expected version 1, got 7"),
    ],
)
def test_states_that_are_none_are_named(change, message):
    loader = loader_of(arrays())
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(loader.state_dict() | change)
    with pytest.raises(ValueError, match="expected version 1, got None"):
        loader.load_state_dict(None)


def test_a_lingering_iterator_does_not_move_the_next_one():
    loader = loader_of(arrays())
    loader.set_epoch(1)
    old = iter(loader)
    next(old)
    loader.set_epoch(1)
    next(old)
    assert len(list(loader)) == 8


def test_the_state_of_an_epoch_that_has_begun_is_its_start():
    loader = loader_of(arrays())
    list(loader)
    batches = iter(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)
    next(batches)
    assert loader.state_dict()["batch"] == 1


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 4])
def test_what_comes_in_turn_is_no_ranks_alone(world):
    columns = {"slide": ["A", "A", "B", "C"] * 24, "label": ["a", "b", "c", "d"] * 24}
    source = arrays(96, **columns)
    for sampler, name in (("balanced", "label"), ("stratified", "slide")):
        for rank in range(world):
            loader = loader_of(source, sampler=sampler, rank=rank, world_size=world)
            seen = torch.cat([getattr(batch, name) for batch in loader])
            assert len(seen.unique()) == len(set(columns[name]))


def test_half_of_an_environment_is_no_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"expected both of \$RANK and \$WORLD_SIZE"):
        loader_of(arrays())
    assert loader_of(arrays(), rank=1, world_size=2)._shares.rank == 1
    monkeypatch.setenv("RANK", "1")
    assert loader_of(arrays())._shares.rank == 1


def test_a_rank_that_changes_after_the_loader_was_made_raises(monkeypatch):
    loader, given = loader_of(arrays()), loader_of(arrays(), rank=0, world_size=2)
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(RuntimeError, match="expected rank 0 of 1 as when it was made, got 1 of 2"):
        iter(loader)
    assert len(list(given)) == 4


def test_slides_that_fill_no_batch_are_no_within_slide_order():
    source = arrays(slide=["A"] * 40 + ["B"] * 24)
    assert len(loader_of(source, sampler="within-slide", batch_size=40)) == 2
    with pytest.raises(ValueError, match="at most the 40 spots of the largest slide"):
        loader_of(source, sampler="within-slide", batch_size=41)


# --- names and arrays ---------------------------------------------------------------------------


def test_whole_numbers_are_sorted_as_numbers():
    source = arrays(24, label=list(range(12)) * 2, slide=[10, 2] * 12)
    batch = next(iter(loader_of(source, shuffle=False, batch_size=24)))
    assert batch.label.tolist() == list(range(12)) * 2
    assert (source.spots.slides, batch.slide[:2].tolist()) == (["2", "10"], [1, 0])


def test_whatever_is_missing_is_no_class():
    values = [None, np.nan, np.float32("nan"), pd.NA, "", 3, "2", np.int64(3)]
    source = arrays(8, label=values)
    assert source.spots.classes == ["2", "3"]
    assert source.spots.label.tolist() == [-1] * 5 + [1, 0, 1]
    with pytest.raises(ValueError, match="slide: expected a name for each spot, got none at row 1"):
        arrays(2, slide=["a", None])


def test_arrays_of_other_shapes_and_orders_are_named():
    with pytest.raises(ValueError, match=r"coords: expected \(n, 2\), got \(64, 3\)"):
        arrays(coords=np.zeros((64, 3)))
    image = np.asfortranarray(np.zeros((4, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="image: expected uint8 in C order, got uint8 in another"):
        ArraySource(image, np.zeros((4, 1), np.float32))
    with pytest.raises(ValueError, match=r"genes: .* got float32 in another"):
        ArraySource(image.copy("C"), np.asfortranarray(np.zeros((4, 3), np.float32)))


def test_genes_may_be_an_index_or_an_array(slides):
    wanted = slides[0].var_names[[3, 1]]
    for genes in (wanted, wanted.to_numpy(), wanted.to_series()):
        assert loader_of(slides, size=2, genes=genes).genes == list(wanted)


def test_the_map_face_takes_any_numbers_but_skips_none():
    face = loader_of(arrays()).as_map()
    found = face.__getitems__(np.arange(16)[::2])
    assert [int(sample["index"]) for sample in found] == list(range(0, 16, 2))
    with pytest.raises(ValueError, match='expected "raise" or "fill" for a map face, got "skip"'):
        loader_of(arrays(), on_error="skip").as_map()


@pytest.mark.parametrize("dtype", ["float32", torch.int32])
def test_a_type_that_is_no_floating_one_is_named(dtype):
    with pytest.raises(ValueError, match="dtype: expected a floating-point type or None, got"):
        loader_of(arrays(), dtype=dtype)
