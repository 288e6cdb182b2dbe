"""Spatial transcriptomics, from raw slide to training batch: fast, exact, pleasant.

The public names live here and are imported when they are first asked for, so
that ``import stfast`` and ``stfast --help`` wait for neither pandas nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stfast._core import FormatError, __version__

if TYPE_CHECKING:
    from stfast.alignment import Alignment, check_alignment
    from stfast.annotations import Labels, labels_of
    from stfast.bins import Bins, Labelled, aggregate_bins
    from stfast.cells import CellCounts, count_cells
    from stfast.convert import to_spatialdata, write_stimage
    from stfast.dataset import Dataset
    from stfast.dataset._build import build
    from stfast.h5 import read_h5_dataset
    from stfast.hvg import (
        GeneMoments,
        gene_moments,
        highly_variable_genes,
        hvg_overlap,
        hvg_rank_combined,
    )
    from stfast.images import SlideImage, open_image, thumbnail
    from stfast.loader import ArraySource, Augment, Batch, TileLoader
    from stfast.manifest import (
        Draft,
        Manifest,
        clean_terms,
        draft_manifest,
        involve_cancer,
        read_manifest,
    )
    from stfast.rasters import Raster, rasterize
    from stfast.readers import (
        read,
        read_10x,
        read_st,
        read_stimage,
        read_stimage_meta,
        read_visium,
        read_visium_hd,
    )
    from stfast.synthetic import synthesize_visium_hd
    from stfast.tiles import TileReport, extract_tiles, tissue_grid
    from stfast.tiles._write import write_tiles

__all__ = [
    "Alignment",
    "ArraySource",
    "Augment",
    "Batch",
    "Bins",
    "CellCounts",
    "Dataset",
    "Draft",
    "FormatError",
    "GeneMoments",
    "Labelled",
    "Labels",
    "Manifest",
    "Raster",
    "SlideImage",
    "TileLoader",
    "TileReport",
    "__version__",
    "aggregate_bins",
    "build",
    "check_alignment",
    "clean_terms",
    "count_cells",
    "draft_manifest",
    "extract_tiles",
    "gene_moments",
    "highly_variable_genes",
    "hvg_overlap",
    "hvg_rank_combined",
    "involve_cancer",
    "labels_of",
    "open_image",
    "rasterize",
    "read",
    "read_10x",
    "read_h5_dataset",
    "read_manifest",
    "read_st",
    "read_stimage",
    "read_stimage_meta",
    "read_visium",
    "read_visium_hd",
    "synthesize_visium_hd",
    "thumbnail",
    "tissue_grid",
    "to_spatialdata",
    "write_stimage",
    "write_tiles",
]

_HOMES = {
    "Alignment": "alignment",
    "ArraySource": "loader",
    "Augment": "loader",
    "Batch": "loader",
    "Bins": "bins",
    "CellCounts": "cells",
    "Dataset": "dataset",
    "Draft": "manifest",
    "GeneMoments": "hvg",
    "Labelled": "bins",
    "Labels": "annotations",
    "Manifest": "manifest",
    "Raster": "rasters",
    "SlideImage": "images",
    "TileLoader": "loader",
    "TileReport": "tiles",
    "aggregate_bins": "bins",
    "build": "dataset._build",
    "check_alignment": "alignment",
    "clean_terms": "manifest",
    "count_cells": "cells",
    "draft_manifest": "manifest",
    "extract_tiles": "tiles",
    "gene_moments": "hvg",
    "highly_variable_genes": "hvg",
    "hvg_overlap": "hvg",
    "hvg_rank_combined": "hvg",
    "involve_cancer": "manifest",
    "labels_of": "annotations",
    "open_image": "images",
    "rasterize": "rasters",
    "read": "readers",
    "read_10x": "readers",
    "read_h5_dataset": "h5",
    "read_manifest": "manifest",
    "read_st": "readers",
    "read_stimage": "readers",
    "read_stimage_meta": "readers",
    "read_visium": "readers",
    "read_visium_hd": "readers",
    "synthesize_visium_hd": "synthetic",
    "thumbnail": "images",
    "tissue_grid": "tiles",
    "to_spatialdata": "convert",
    "write_stimage": "convert",
    "write_tiles": "tiles._write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stfast' has no attribute {name!r}")
    value = getattr(import_module(f"stfast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
