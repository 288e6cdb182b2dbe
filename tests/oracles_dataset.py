"""A built dataset, written in the plainest way: tarfile, Pillow, numpy, a spot at a time.

Rows lie in the order that is given, so that sources can be compared row by row.
"""

import io
import json
import tarfile

import numpy as np
import polars as pl
from PIL import Image
from scipy import sparse

from stfast.dataset import _layout


def encoded(tile, encoding):
    """The bytes of a tile, and the ending of its name."""
    coded = io.BytesIO()
    if encoding == "raw":
        np.save(coded, tile)
        return coded.getvalue(), "npy"
    options = {"quality": 95, "subsampling": 0} if encoding == "jpeg" else {}
    Image.fromarray(tile).save(coded, encoding, **options)
    return coded.getvalue(), {"jpeg": "jpg"}.get(encoding, encoding)


def write_shards(root, tiles, encoding, per_shard):
    """Tar shards of the tiles, a ``.json`` beside each; shard, offset and length of each."""
    (root / "tiles").mkdir(parents=True)
    places = []
    for start in range(0, len(tiles), per_shard):
        number = start // per_shard
        path = _layout.shard(root, number)
        with tarfile.open(path, "w") as tar:
            for row in range(start, min(start + per_shard, len(tiles))):
                data, ending = encoded(tiles[row], encoding)
                for name, content in ((f"{row}.{ending}", data), (f"{row}.json", b"{}")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        with tarfile.open(path) as tar:
            members = [m for m in tar if not m.name.endswith(".json")]
        places += [(number, m.offset_data, m.size) for m in members]
    return places


def write_dataset(root, slides, tiles, *, encoding="png", per_shard=50, slide_table=None):
    """A dataset of slides (AnnData), their tiles in the order of their spots."""
    places = write_shards(root, tiles, encoding, per_shard)
    shard, offset, length = zip(*places, strict=True)
    names = [next(iter(a.uns["spatial"])) for a in slides]
    xy = np.concatenate([a.obsm["spatial"] for a in slides])
    counts = sparse.vstack([sparse.csr_matrix(a.X) for a in slides], format="csr")
    labels = [a.obs["layer"].tolist() if "layer" in a.obs else [None] * a.n_obs for a in slides]
    columns = {
        "slide": np.repeat(names, [a.n_obs for a in slides]).tolist(),
        "spot": [spot for a in slides for spot in a.obs_names],
        "x": xy[:, 0],
        "y": xy[:, 1],
        "r": [10.65] * len(xy),
        "shard": shard,
        "offset": offset,
        "length": length,
        "label": [label or None for part in labels for label in part],
        "in_tissue": [True] * len(xy),
        "n_counts": np.asarray(counts.sum(axis=1), dtype=float).ravel(),
        "n_genes": np.diff(counts.indptr),
        "valid": [1.0] * len(xy),
    }
    pl.DataFrame(columns, schema=_layout.INDEX_SCHEMA).write_parquet(root / _layout.INDEX)
    table = {"slide": names} if slide_table is None else slide_table
    pl.DataFrame(table).write_parquet(root / _layout.SLIDE_TABLE)
    write_genes(root, slides[0].var_names.tolist(), names, counts)
    settings = {"format_version": 1, "size": tiles.shape[1], "encoding": encoding}
    (root / _layout.DESCRIPTION).write_text(json.dumps({_layout.SETTINGS: settings}))
    return root


def write_genes(root, genes, names, counts):
    """The gene files; the matrix of chosen genes is all of them, as they are."""
    (root / _layout.COUNTS).mkdir(parents=True)
    np.save(root / _layout.HVG, counts.toarray().astype(np.float32))
    rank = np.tile(np.arange(len(genes)), len(names))
    table = {
        "slide": np.repeat(names, len(genes)).tolist(),
        "rank": rank,
        "gene": genes * len(names),
    }
    pl.DataFrame(table).write_parquet(root / _layout.HVG_GENES)
    pl.DataFrame({"gene": genes}).write_parquet(root / _layout.GENES)
    np.save(root / _layout.COUNTS / "indptr.npy", counts.indptr.astype(np.int64))
    np.save(root / _layout.COUNTS / "indices.npy", counts.indices.astype(np.uint16))
    np.save(root / _layout.COUNTS / "values.npy", counts.data.astype(np.uint8))
