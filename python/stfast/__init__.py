"""Spatial transcriptomics, from raw slide to training batch: fast, exact, pleasant."""

from typing import TYPE_CHECKING, Any

from stfast._core import FormatError, __version__
from stfast.bins import Bins, aggregate_bins
from stfast.hvg import highly_variable_genes
from stfast.images import SlideImage, open_image
from stfast.readers import read, read_st, read_visium_hd
from stfast.synthetic import synthesize_visium_hd
from stfast.tiles import extract_tiles, thumbnail

if TYPE_CHECKING:
    from stfast.loader import Batch, TileLoader

__all__ = [
    "Batch",
    "Bins",
    "FormatError",
    "SlideImage",
    "TileLoader",
    "__version__",
    "aggregate_bins",
    "extract_tiles",
    "highly_variable_genes",
    "open_image",
    "read",
    "read_st",
    "read_visium_hd",
    "synthesize_visium_hd",
    "thumbnail",
]


def __getattr__(name: str) -> Any:
    """Names that need torch are imported when they are first asked for."""
    if name in ("Batch", "TileLoader"):
        from stfast import loader

        return getattr(loader, name)
    raise AttributeError(f"module 'stfast' has no attribute {name!r}")
