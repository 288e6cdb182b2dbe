"""An epoch of training batches: against torch's DataLoader, WebDataset and the paper's way."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

import stfast
from benches import data, data_loader, peers, peers_loader, peers_tiles
from benches.measure import Case, Contestant, threads

BATCH = 256


def epoch(*, quick: bool) -> Case:
    """Our cache of decoded blocks is cold: a loader of its own for each epoch."""
    side, per_side = (5120, 17) if quick else (10_240, 36)
    adata = data.slide_adata(side, per_side, 128)
    files = data.tile_files(side, per_side)
    genes = adata.X.toarray().astype(np.float32)
    blocks, n = data.coded_blocks(data.slide(side)), threads()
    dataset = partial(peers.torch_epoch, files, genes, batch_size=BATCH)
    return Case(
        title=f"{per_side**2} tiles of 224 px + 128 genes, shuffled, batches of {BATCH}, uint8",
        work=per_side**2,
        unit="tiles",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=n,
                call=lambda: _ours(adata),
                warm=lambda: _ours(adata[:8].copy()),
            ),
            Contestant(
                name=f"DataLoader + Pillow, {n} processes",
                needs=("torch",),
                threads=n,
                call=partial(dataset, processes=n),
            ),
            Contestant(
                name="DataLoader + Pillow, as the paper",
                needs=("torch",),
                call=partial(dataset, processes=0),
            ),
            Contestant(
                name=f"libjpeg-turbo raw, {n} threads",
                role="limit",
                threads=n,
                needs=("imagecodecs",),
                call=partial(peers_tiles.decode_jpegs, blocks, (data.BLOCK, data.BLOCK), n),
            ),
        ],
        equal=_equal,
    )


def _ours(adata: AnnData) -> list[peers.Batch]:
    loader = stfast.TileLoader(adata, size=224, batch_size=BATCH, device="cpu")
    return [(batch.image, batch.genes, batch.index) for batch in loader]


def _equal(ours: list[peers.Batch], theirs: list[peers.Batch]) -> None:
    for a, b in zip(_by_spot(ours), _by_spot(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def _by_spot(batches: list[peers.Batch]) -> list[np.ndarray]:
    image, genes, index = (np.concatenate(part) for part in zip(*batches, strict=True))
    order = np.argsort(index)
    return [image[order], genes[order], index[order]]


LARGE = 1024


def built(*, quick: bool) -> Case:
    """A built dataset of JPEG tiles; its files are in the system's cache for all alike."""
    side, per_side = (5120, 17) if quick else (10_240, 36)
    root, coded = data_loader.dataset(side, per_side), data_loader.coded_tiles(side, per_side)
    bytes_of = [path.read_bytes() for path in sorted(coded.iterdir())]
    ours = partial(_dataset, root)
    n = threads()
    return Case(
        title=f"{len(bytes_of)} JPEG tiles of 224 px + 128 genes, batches of {LARGE}, uint8",
        work=len(bytes_of),
        unit="tiles",
        contestants=[
            Contestant(name="stfast", role="ours", threads=n, call=ours, warm=ours),
            *_built_peers(root, coded),
            Contestant(
                name=f"libjpeg-turbo raw, {n} threads",
                role="limit",
                threads=n,
                needs=("imagecodecs",),
                call=partial(peers_tiles.decode_jpegs, bytes_of, (224, 224), n),
            ),
        ],
        equal=_equal,
    )


def _built_peers(root: Path, coded: Path) -> list[Contestant]:
    genes, files = np.asarray(stfast.Dataset(root).hvg), sorted(coded.iterdir())
    pngs, shards, n = data_loader.pngs_of(coded), sorted((root / "tiles").iterdir()), threads()
    jpegs = partial(peers_loader.dataloader, files, genes, batch=LARGE, processes=n)
    calls = {
        f"DataLoader + simplejpeg, {n} processes": partial(jpegs, codec="simplejpeg"),
        f"DataLoader + Pillow, {n} processes": partial(jpegs, codec="PIL"),
        f"webdataset + simplejpeg, {n} processes": partial(
            peers_loader.webdataset, shards, genes, LARGE, n
        ),
        f"spdl + simplejpeg, {n} threads": partial(peers_loader.spdl, files, genes, LARGE, n),
    }
    paper = partial(peers.torch_epoch, pngs, genes, batch_size=LARGE, processes=0)
    return [
        Contestant(name=name, needs=_modules(name), threads=n, call=call)
        for name, call in calls.items()
    ] + [Contestant(name="PNG + Pillow, as the paper", needs=("PIL", "torch"), call=paper)]


def _modules(name: str) -> tuple[str, ...]:
    """Loader and codec, as a contestant's name has them."""
    loader, codec = name.split(",", maxsplit=1)[0].split(" + ")
    modules = {"DataLoader": "torch", "Pillow": "PIL"}
    return modules.get(loader, loader), modules.get(codec, codec)


def ready(*, quick: bool) -> Case:
    """Batches as CLIP takes them, normalised: the paper's Dataset with its image processor."""
    import torch

    side, per_side = (5120, 17) if quick else (10_240, 36)
    root, coded = data_loader.dataset(side, per_side), data_loader.coded_tiles(side, per_side)
    files, genes = data_loader.pngs_of(coded), np.asarray(stfast.Dataset(root).hvg)
    clip = {
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    }
    ours = partial(_dataset, root, dtype=torch.float32, **clip)
    return Case(
        title=f"{len(files)} tiles of 224 px + 128 genes, batches of {LARGE}, float32 for CLIP",
        work=len(files),
        unit="tiles",
        contestants=[
            Contestant(name="stfast", role="ours", threads=threads(), call=ours, warm=ours),
            Contestant(
                name="PNG + Pillow + CLIPImageProcessor, as the paper",
                needs=("transformers",),
                call=partial(peers_loader.paper, files, genes, LARGE),
                warm=partial(peers_loader.paper, files[:8], genes[:8], LARGE),
            ),
        ],
        equal=_nearly,
    )


def _nearly(ours: list[peers.Batch], theirs: list[peers.Batch]) -> None:
    for a, b in zip(_by_spot(ours), _by_spot(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def _dataset(root: Path, **options: Any) -> list[peers.Batch]:
    loader = stfast.Dataset(root).loader(batch_size=LARGE, device="cpu", **options)
    return [(batch.image, batch.genes, batch.index) for batch in loader]


CASES = {"epoch": epoch, "built": built, "ready": ready}
