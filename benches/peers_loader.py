"""Training batches of JPEG tiles as users make them today, with all processes they may use."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches.peers import Batch, Pixels, PngDataset


def dataloader(
    files: Sequence[Path], genes: NDArray[np.float32], codec: str, batch: int, processes: int
) -> list[Batch]:
    """A JPEG file a spot through torch's DataLoader; genes dense in memory."""
    import torch

    loader: Any = torch.utils.data.DataLoader(
        JpegFiles(files, genes, codec),  # type: ignore[arg-type]
        batch_size=batch,
        shuffle=True,
        num_workers=processes,
    )
    return list(loader)


class JpegFiles:
    """Tile, genes and number of a spot."""

    def __init__(self, files: Sequence[Path], genes: NDArray[np.float32], codec: str) -> None:
        self.files, self.genes, self.codec = list(files), genes, codec

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Pixels, NDArray[np.float32], int]:
        return decode(self.files[index].read_bytes(), self.codec), self.genes[index], index


def paper(files: Sequence[Path], genes: NDArray[np.float32], batch: int) -> list[Batch]:
    """The paper's Dataset: a PNG a spot, Pillow, CLIP's image processor; one process."""
    import torch
    from transformers import CLIPImageProcessor

    processor: Any = CLIPImageProcessor()

    def collate(spots: list[tuple[Pixels, NDArray[np.float32], int]]) -> Batch:
        pixels, chosen, index = zip(*spots, strict=True)
        done = [processor(images=p, return_tensors="pt")["pixel_values"][0] for p in pixels]
        return torch.stack(done), torch.from_numpy(np.stack(chosen)), torch.tensor(index)

    loader: Any = torch.utils.data.DataLoader(
        PngDataset(files, genes),  # type: ignore[arg-type]
        batch_size=batch,
        shuffle=True,
        collate_fn=collate,
    )
    return list(loader)


def webdataset(
    shards: Sequence[Path], genes: NDArray[np.float32], batch: int, processes: int
) -> list[Batch]:
    """WebDataset over the same shards, shuffled in a buffer; keys are the numbers of rows."""
    import webdataset as wds

    dataset: Any = wds.WebDataset([str(path) for path in shards], shardshuffle=len(shards))
    dataset = dataset.shuffle(1000).map(partial(sample, genes=genes)).batched(batch)
    loader: Any = wds.WebLoader(dataset, batch_size=None, num_workers=processes)
    return list(loader)


def spdl(
    files: Sequence[Path], genes: NDArray[np.float32], batch: int, threads: int
) -> list[Batch]:
    """SPDL's pipeline of threads over a JPEG file a spot; its own decoder would need FFmpeg."""
    import spdl.pipeline

    def collate(spots: list[tuple[Pixels, NDArray[np.float32], int]]) -> Batch:
        pixels, chosen, index = zip(*spots, strict=True)
        return np.stack(pixels), np.stack(chosen), np.asarray(index)

    order = np.random.default_rng(0).permutation(len(files)).tolist()
    builder: Any = spdl.pipeline.PipelineBuilder().add_source(order)
    builder.pipe(JpegFiles(files, genes, "simplejpeg").__getitem__, concurrency=threads)
    builder.aggregate(batch).pipe(collate).add_sink(2)
    pipeline = builder.build(num_threads=threads)
    with pipeline.auto_stop():
        return list(pipeline)


def sample(read: dict[str, Any], genes: NDArray[np.float32]) -> Batch:
    """What a shard holds of a spot, decoded, with its genes."""
    index = int(read["__key__"])
    return decode(read["jpg"], "simplejpeg"), genes[index], index


def decode(data: bytes, codec: str) -> Pixels:
    """A tile's pixels, by Pillow or by simplejpeg (libjpeg-turbo)."""
    if codec == "simplejpeg":
        import simplejpeg

        pixels: Pixels = simplejpeg.decode_jpeg(data)
        return pixels
    import io

    from PIL import Image

    return np.array(Image.open(io.BytesIO(data)))
