"""Spatial transcriptomics, from raw slide to training batch: fast, exact, pleasant.

The public names live here and are imported when they are first asked for, so
that ``import stfast`` and ``stfast --help`` wait for neither pandas nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stfast._core import FormatError, __version__

if TYPE_CHECKING:
    from stfast.bins import Bins, aggregate_bins
    from stfast.hvg import (
        GeneMoments,
        gene_moments,
        highly_variable_genes,
        hvg_overlap,
        hvg_rank_combined,
    )
    from stfast.images import SlideImage, open_image
    from stfast.loader import Batch, TileLoader
    from stfast.readers import read, read_st, read_visium_hd
    from stfast.synthetic import synthesize_visium_hd
    from stfast.tiles import extract_tiles, thumbnail

__all__ = [
    "Batch",
    "Bins",
    "FormatError",
    "GeneMoments",
    "SlideImage",
    "TileLoader",
    "__version__",
    "aggregate_bins",
    "extract_tiles",
    "gene_moments",
    "highly_variable_genes",
    "hvg_overlap",
    "hvg_rank_combined",
    "open_image",
    "read",
    "read_st",
    "read_visium_hd",
    "synthesize_visium_hd",
    "thumbnail",
]

_HOMES = {
    "Batch": "loader",
    "Bins": "bins",
    "GeneMoments": "hvg",
    "SlideImage": "images",
    "TileLoader": "loader",
    "aggregate_bins": "bins",
    "extract_tiles": "tiles",
    "gene_moments": "hvg",
    "highly_variable_genes": "hvg",
    "hvg_overlap": "hvg",
    "hvg_rank_combined": "hvg",
    "open_image": "images",
    "read": "readers",
    "read_st": "readers",
    "read_visium_hd": "readers",
    "synthesize_visium_hd": "synthetic",
    "thumbnail": "tiles",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stfast' has no attribute {name!r}")
    value = getattr(import_module(f"stfast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
