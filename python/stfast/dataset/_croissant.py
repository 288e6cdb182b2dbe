"""``dataset.json``: what a dataset holds, in Croissant, MLCommons' JSON-LD for datasets.

Tables are described column by column, so that what reads Croissant reads the index; the
settings of the build stand beside it under a key that JSON-LD takes for plain JSON.
Format: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl

from stfast.dataset import _card, _layout

_VOCABULARY = "http://mlcommons.org/croissant/"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": _VOCABULARY,
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": f"{_VOCABULARY}RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
    _layout.SETTINGS: {"@id": "urn:stfast:settings", "@type": "@json"},
}
_TABLES = {
    "spots": (_layout.INDEX, "A row a spot, in the order of the tiles in the shards."),
    "slides": (_layout.SLIDE_TABLE, "A row a slide: what the manifest says, and was measured."),
    "chosen_genes": (_layout.HVG_GENES, "Which gene each column of genes/hvg.npy is, by slide."),
    "genes": (_layout.GENES, "Genes in the order of the columns of genes/counts."),
}
_COLUMNS = {
    "slide": "Name of the slide.",
    "spot": "Name of the spot in the slide's AnnData.",
    "x": "Centre in pixels of the slide's picture, level 0.",
    "y": "Centre in pixels of the slide's picture, level 0.",
    "r": "Radius of the spot in the same pixels.",
    "shard": "Number of the tar file in tiles/ that holds the encoded tile.",
    "offset": "Where the encoded tile starts in that file, in bytes.",
    "length": "Bytes of the encoded tile.",
    "label": "Annotation of the spot.",
    "in_tissue": "Whether the spot lies on tissue, by its maker.",
    "n_counts": "Sum of the spot's counts.",
    "n_genes": "Number of genes with counts.",
    "valid": "Share of the tile's window that is picture.",
    "fingerprint": "Of the slide's files and of the build's settings.",
    "width": "Of the slide's picture, in pixels.",
    "height": "Of the slide's picture, in pixels.",
    "span": "Side of a tile's window in pixels of the picture.",
    "rank": "Column of genes/hvg.npy, from 0.",
    "gene": "Name of the gene.",
}


def describe(root: Path, name: str, settings: dict[str, Any], slides: pl.DataFrame) -> str:
    """The text of ``dataset.json`` for the files that lie below ``root``."""
    licenses, urls = (_said(slides, column) for column in ("license", "source_url"))
    if licenses and "license" in _card.missing(slides):
        licenses.append("not said")
    described: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": f"{_VOCABULARY}1.0",
        "name": name,
        "description": (
            f"{settings['n_spots']} tiles of {settings['size']} px around the spots of "
            f"{slides.height} slides of spatial transcriptomics, with their gene counts."
        ),
        "version": "1.0.0",
    }
    if licenses:
        described["license"] = licenses if len(licenses) > 1 else licenses[0]
    if urls:
        described["url"] = urls[0]
        described["sameAs"] = urls
    if "title" in slides.columns and (titles := _said(slides, "title")):
        described["citeAs"] = "; ".join(titles)
    described["distribution"] = [*map(_file, [root] * len(_TABLES), _TABLES), _shards(settings)]
    described["recordSet"] = [_records(root, table) for table in _TABLES]
    described[_layout.SETTINGS] = settings
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


def _said(slides: pl.DataFrame, column: str) -> list[str]:
    """The different values of a column of the manifest, if it has it."""
    return sorted(set(_card.values(slides, column)))


def _file(root: Path, table: str) -> dict[str, Any]:
    path, about = _TABLES[table]
    with (root / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "description": about,
        "contentUrl": path,
        "contentSize": f"{(root / path).stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": digest,
    }


def _shards(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "tiles",
        "name": "tiles",
        "description": f"Tar shards of tiles ({settings['encoding']}), a .json beside each.",
        "encodingFormat": "application/x-tar",
        "includes": "tiles/*.tar",
    }


def _records(root: Path, table: str) -> dict[str, Any]:
    path, about = _TABLES[table]
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{table}/{column}",
            "name": column,
            "description": _COLUMNS.get(column, "From the manifest."),
            "dataType": _type(kind),
            "source": {"fileObject": {"@id": path}, "extract": {"column": column}},
        }
        for column, kind in pl.read_parquet_schema(root / path).items()
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": table,
        "name": table,
        "description": about,
        "field": fields,
    }


def _type(kind: pl.DataType) -> str:
    if kind.is_float():
        return "sc:Float"
    if kind.is_integer():
        return "sc:Integer"
    return "sc:Boolean" if kind == pl.Boolean else "sc:Text"
