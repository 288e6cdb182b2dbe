"""A matrix of many slides, gathered in memory or written a slide at a time."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
from anndata import AnnData
from anndata.io import write_elem
from numpy.typing import NDArray

from stfast import _spatial
from stfast._output import whole

_FORMAT_VERSION = 1
_ZARR_ROWS = 4096


class Part(NamedTuple):
    """A slide's spots × columns, float32, with the names of its spots."""

    slide: str
    spots: NDArray[np.object_]
    matrix: NDArray[np.float32]


About = Callable[[], dict[str, Any]]
"""What there is to say of the whole, once all parts are made."""


def gather(
    parts: Iterator[Part], var: pd.DataFrame, about: About, output: str | os.PathLike[str] | None
) -> AnnData | None:
    """All parts as one AnnData, or in a file whole or not at all."""
    if output is None:
        made = list(parts)
        return _said(
            AnnData(np.concatenate([part.matrix for part in made]), _obs(made), var), about
        )
    path = Path(output)
    if path.suffix not in (".parquet", ".zarr"):
        raise ValueError(f"output: expected a name ending in .parquet or .zarr, got {path}")
    if taken := {"slide", "spot"} & set(var.index):
        raise ValueError(f"genes: expected other names than slide and spot, got {taken}")
    with whole(path) as partial:
        (_parquet if path.suffix == ".parquet" else _zarr)(parts, var, about, partial)
        if path.is_dir():
            shutil.rmtree(path)
    return None


def _obs(parts: list[Part]) -> pd.DataFrame:
    """A row a spot, named by slide and spot."""
    slides = np.repeat([part.slide for part in parts], [len(part.spots) for part in parts])
    spots = np.concatenate([part.spots.astype(str) for part in parts])
    index = _spatial.names(np.char.add(np.char.add(slides, "_"), spots))
    columns = {"slide": pd.Categorical(slides, [part.slide for part in parts]), "spot": spots}
    return pd.DataFrame(columns, index=index)


def _stamp() -> dict[str, Any]:
    return {"format_version": _FORMAT_VERSION, "version": metadata.version("stfast")}


def _said(adata: AnnData, about: About) -> AnnData:
    adata.uns |= about()
    adata.uns["stfast"] = _stamp()
    return adata


def _parquet(parts: Iterator[Part], var: pd.DataFrame, about: About, partial: Path) -> None:
    """Each part to a file of its own, then all of them, row group by row group, to one."""
    folder = partial.with_name(f"{partial.name}.parts")
    folder.mkdir()
    files: list[Path] = []
    try:
        for part in parts:
            columns = dict(zip(var.index, part.matrix.T, strict=True))
            names = {"slide": [part.slide] * len(part.spots), "spot": part.spots.astype(str)}
            files.append(folder / f"{len(files)}.parquet")
            pl.DataFrame(names | columns).write_parquet(files[-1])
        said = _stamp()
        for key, value in about().items():
            said[key] = value.T.to_dict("list") if isinstance(value, pd.DataFrame) else value
        joined = pl.scan_parquet(files)
        joined.sink_parquet(partial, metadata={"stfast": json.dumps(said)})
    finally:
        shutil.rmtree(folder)


def _zarr(parts: Iterator[Part], var: pd.DataFrame, about: About, partial: Path) -> None:
    """As AnnData writes a store, but X is appended to, and the spots' names come last."""
    import zarr

    store = zarr.open_group(partial, mode="w")
    write_elem(store, "/", AnnData(var=var))
    shape, chunks = (0, len(var)), (_ZARR_ROWS, len(var))
    x = store.create_array("X", shape=shape, chunks=chunks, dtype="float32", overwrite=True)
    x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    made = []
    for part in parts:
        x.append(part.matrix)
        made.append(part._replace(matrix=part.matrix[:0]))
    shell = _said(AnnData(obs=_obs(made), var=var), about)
    write_elem(store, "obs", shell.obs)
    write_elem(store, "uns", dict(shell.uns))
