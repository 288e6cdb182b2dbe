"""`stfast info`: what an image or the folder of a slide is, from its headers."""

from pathlib import Path
from typing import Annotated, Any

import typer

import stfast
from stfast.cli._app import Json, app
from stfast.cli._show import Rows, rows_of, show


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="An image, or the folder of a slide.")],
    as_json: Json = False,
) -> None:
    """Describe an image or a slide."""
    found, rows = _slide_info(path) if path.is_dir() else _image_info(path)
    show(found, as_json, ("", ""), rows)


def _image_info(path: Path) -> tuple[dict[str, Any], Rows]:
    image = stfast.open_image(path)
    levels: list[dict[str, Any]] = [
        {
            "width": level.header.width,
            "height": level.header.height,
            "downsample": round(level.downsample[0], 4),
            "codec": level.header.codec,
            "block": [level.header.block_width, level.header.block_height],
            "blocks": len(level.header.offsets),
            "access": level.access[0],
            "decoded_by": list(level.access[1:]),
        }
        for level in image.levels
    ]
    found = {
        "path": str(path),
        "kind": image.kind,
        "mpp": image.mpp,
        "mpp_source": image.mpp_source,
        "levels": levels,
    }
    mpp = "unknown" if image.mpp is None else f"{image.mpp:.4g} µm per pixel ({image.mpp_source})"
    rows: Rows = [("kind", image.kind), ("pixel", mpp)]
    for number, level in enumerate(levels):
        sides = f"{level['width']} × {level['height']} px, 1/{level['downsample']:g}"
        stored = f"{level['blocks']} {level['codec']} of {_by(level['block'])}"
        access = f"access by {level['access']} of {_by(level['decoded_by'])}"
        rows.append((f"level {number}", f"{sides}, {stored}, {access}"))
    return found, rows


def _by(sides: list[int]) -> str:
    return " × ".join(map(str, sides))


def _slide_info(path: Path) -> tuple[dict[str, Any], Rows]:
    from stfast import _spatial
    from stfast.readers.visium_hd import describe_visium_hd, is_visium_hd

    if is_visium_hd(path):
        found = {"path": str(path), **describe_visium_hd(path)}
        return found, rows_of(found)
    adata = stfast.read(path)
    name, library = _spatial.library(adata)
    found = {
        "path": str(path),
        "library": name,
        "spots": adata.n_obs,
        "genes": adata.n_vars,
        "nonzeros": int(adata.X.nnz),
        "in_tissue": int((adata.obs["in_tissue"] == 1).sum()),
        "scalefactors": library["scalefactors"],
        "metadata": library["metadata"],
    }
    if "in_picture" in adata.obs:
        found["in_picture"] = int(adata.obs["in_picture"].sum())
    return found, rows_of(found)
