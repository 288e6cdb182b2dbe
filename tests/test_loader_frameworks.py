"""TileLoader inside what trains with it: plain torch, DataLoader, Lightning, Trainer, torchdata."""

import hashlib
import itertools
import statistics
import threading
import time

import numpy as np
import pytest

import stfast
from oracles import run_python
from oracles_dataset import write_dataset

torch = pytest.importorskip("torch")
TileLoader = stfast.TileLoader


@pytest.fixture(scope="module")
def dataset(slides, tmp_path_factory):
    tiles = np.random.default_rng(0).integers(0, 256, (116, 16, 16, 3), dtype=np.uint8)
    return stfast.Dataset(write_dataset(tmp_path_factory.mktemp("set") / "d", slides, tiles))


def loader_of(dataset, **options):
    return TileLoader(dataset, **{"batch_size": 16, "device": "cpu"} | options)


def rows(batches):
    return np.concatenate([batch.index.numpy() for batch in batches]).tolist()


def test_a_plain_loop_trains(dataset):
    model = torch.nn.Linear(16 * 16 * 3, 9)
    before = model.weight.detach().clone()
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in loader_of(dataset, dtype=torch.float32):
        loss = (model(batch.image.flatten(1)) - batch.genes).square().mean()
        step.zero_grad()
        loss.backward()
        step.step()
    assert (model.weight != before).any()


@pytest.mark.parametrize("processes", [0, 2])
def test_in_a_dataloader(dataset, processes):
    loader = loader_of(dataset, in_workers=processes > 0)
    spread = torch.utils.data.DataLoader(loader, batch_size=None, num_workers=processes)
    assert len(spread) == 8
    expected = rows(loader_of(dataset))
    assert rows(spread) == expected
    assert sorted(expected) == list(range(116))


def test_in_worker_processes_it_raises_unless_asked(dataset):
    spread = torch.utils.data.DataLoader(loader_of(dataset), batch_size=None, num_workers=2)
    with pytest.raises(RuntimeError, match="expected no worker processes"):
        list(spread)


def test_a_fork_amid_an_epoch_raises_rather_than_hangs(tmp_path):
    out = run_python("""
        import os, signal, numpy as np, stfast
        image, genes = np.zeros((64, 1, 1, 3), np.uint8), np.zeros((64, 1), np.float32)
        source = stfast.ArraySource(image, genes)
        loader = stfast.TileLoader(source, batch_size=2, prefetch=1, device="cpu")
        batches = iter(loader)
        next(batches)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                for batch in batches:
                    pass
            except RuntimeError as error:
                os._exit(7 if "got a fork of it" in str(error) else 8)
            os._exit(9)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(list(batches)))
    """)
    assert out.split() == ["7", "31"]


def test_the_map_face_fetches_as_the_loader_does(dataset):
    face = loader_of(dataset).as_map()
    assert len(face) == 116
    every = torch.utils.data.DataLoader(face, batch_size=30)
    found = {k: torch.cat([b[k] for b in every]) for k in ("image", "genes", "label", "index")}
    plain = list(loader_of(dataset, shuffle=False))
    for name, column in found.items():
        torch.testing.assert_close(column, torch.cat([getattr(b, name) for b in plain]))
    torch.testing.assert_close(face[-1]["image"], found["image"][115])
    with pytest.raises(IndexError):
        face[116]


def test_the_interpreter_is_free_while_batches_are_made(dataset):
    """A Python thread that only counts keeps its rate beside a loader at work.

    It is compared with its rate beside hashing, which holds no lock either, in turns: so
    neither the second CPU's work nor another process' counts as the loader's doing.
    """
    counted, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1

    def rate(work):
        start, begin = time.perf_counter(), counted[0]
        work()
        return (counted[0] - begin) / (time.perf_counter() - start)

    big = np.zeros((64, 512, 512, 3), np.uint8)
    source = stfast.ArraySource(big, np.zeros((64, 1), np.float32))
    rows = np.tile(np.arange(64), 10)
    loader = TileLoader(source, rows=rows, batch_size=64, device="cpu", workers=1)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        kept = [
            rate(lambda: list(loader)) / rate(lambda: hashlib.sha256(big).digest())
            for _ in range(9)
        ]
    finally:
        stop.set()
        thread.join()
    assert statistics.median(kept) > 0.9, kept


@pytest.mark.slow
def test_memory_is_flat_over_fifty_epochs(dataset):
    import resource

    loader = loader_of(dataset)
    for _ in range(5):
        list(loader)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(50):
        list(loader)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_torchdata_saves_and_restores_it(dataset):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    first = stateful.StatefulDataLoader(loader_of(dataset), batch_size=None, num_workers=0)
    begun = rows(itertools.islice(first, 3))
    state = first.state_dict()
    second = stateful.StatefulDataLoader(loader_of(dataset), batch_size=None, num_workers=0)
    second.load_state_dict(state)
    assert begun + rows(second) == rows(loader_of(dataset))


def test_lightning_trains_with_it(dataset, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(768, 9), []

        def training_step(self, batch):
            self.seen += batch.index.tolist()
            return (self.layer(batch.image.flatten(1)) - batch.genes).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    model = Model()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False,
        **quiet,
    )  # fmt: skip
    trainer.fit(model, loader_of(dataset, dtype=torch.float32))
    assert sorted(model.seen) == sorted([*range(116), *range(116)])
    assert model.seen[:116] != model.seen[116:]


def test_hugging_faces_trainer_trains_with_its_map_face(dataset, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(768, 9), []

        def forward(self, image, genes, index, **_):
            self.seen += index.tolist()
            return {"loss": (self.layer(image.flatten(1)) - genes).square().mean()}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=1, per_device_train_batch_size=32,
        report_to=[], save_strategy="no", remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    model = Model()
    face = loader_of(dataset, dtype=torch.float32).as_map()
    transformers.Trainer(model=model, args=arguments, train_dataset=face).train()
    assert sorted(model.seen) == list(range(116))
