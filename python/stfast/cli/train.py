"""`stfast train` and `stfast embed`: fine-tune an image tower, and use it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import stfast
from stfast._output import whole
from stfast.cli._app import Json, Workers, app
from stfast.cli._show import progress_bar, rows_of, show

if TYPE_CHECKING:
    from stfast.learn import Training

Root = Annotated[Path, typer.Argument(help="Folder of a built dataset.")]
Model = Annotated[
    str,
    typer.Option(
        help="CLIP on the hub or in a folder, timm:NAME, hf-hub:OWNER/NAME, or "
        "package.module:function."
    ),
]
Only = Annotated[
    list[str] | None, typer.Option("--slide", help="Use only this slide; repeat for more.")
]
Precision = Annotated[str, typer.Option(help="Precision of the towers: fp32 or bf16.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if available.")]


def view(root: Path, slides: list[str] | None) -> "stfast.Dataset":
    """The dataset, or some of its slides."""
    dataset = stfast.Dataset(root)
    lost = sorted(set(slides or ()) - set(dataset.slides["slide"]))
    if lost:
        raise ValueError(f"{root}: expected one of its slides, got {lost[0]!r}")
    return dataset.filter(slide=slides) if slides else dataset


@app.command()
def train(
    dataset: Root,
    out: Annotated[Path, typer.Argument(help="Folder for the checkpoint and the losses.")],
    model: Model = "openai/clip-vit-base-patch32",
    genes: Annotated[
        str, typer.Option(help="Input of the gene tower: hvg, overlap or counts.")
    ] = "hvg",
    slide: Only = None,
    epochs: Annotated[int, typer.Option(help="Number of passes over the spots.")] = 15,
    batch_size: Annotated[int, typer.Option(help="Spots in a batch, over all ranks.")] = 1024,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 5e-5,
    precision: Precision = "fp32",
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order.")] = 0,
    device: Device = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an image tower against genes, as in the paper; resume from a checkpoint."""
    from stfast import learn

    part = view(dataset, slide)
    with progress_bar("steps", None) as advance:
        made = learn.train(
            part,
            out,
            model=model,
            genes=genes,  # type: ignore[arg-type]
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            precision=precision,  # type: ignore[arg-type]
            save_every=save_every,
            seed=seed,
            device=device,
            workers=workers,
            progress=advance,
        )
    if os.environ.get("RANK", "0") == "0":
        found = _told(made)
        show(found, as_json, ("", ""), rows_of(found))


def _told(made: "Training") -> dict[str, Any]:
    return {
        "folder": str(made.folder),
        "steps": made.history.height,
        "loss": made.history["loss"][-1] if made.history.height else None,
        "spots_per_second": made.spots_per_second,
        "share_waiting": made.share_waiting,
    }


@app.command()
def embed(
    dataset: Root,
    output: Annotated[Path, typer.Option("--output", "-o", help=".parquet file to write.")],
    model: Model = "openai/clip-vit-base-patch32",
    layer: Annotated[
        str, typer.Option(help="tower: its own output; joint: the shared space.")
    ] = "tower",
    slide: Only = None,
    batch_size: Annotated[int, typer.Option(help="Tiles per batch.")] = 256,
    precision: Precision = "fp32",
    adata: Annotated[
        Path | None, typer.Option(help="Folder for one h5ad per slide, with embeddings in obsm.")
    ] = None,
    device: Device = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Embed each tile; --model may be a folder that `stfast train` wrote."""
    from stfast import learn

    part = view(dataset, slide)
    with progress_bar("spots", len(part)) as advance:
        made = learn.embed(
            part,
            output,
            model=model,
            layer=layer,  # type: ignore[arg-type]
            batch_size=batch_size,
            precision=precision,  # type: ignore[arg-type]
            device=device,
            workers=workers,
            progress=advance,
        )
    if adata is not None:
        _write_slides(part, output, adata)
    found = vars(made) | {"path": str(made.path)}
    show(found, as_json, ("", ""), rows_of(found))


def _write_slides(dataset: "stfast.Dataset", embeddings: Path, folder: Path) -> None:
    """An h5ad a slide, its embeddings in ``obsm``."""
    from stfast import learn

    folder.mkdir(exist_ok=True)
    for name in sorted(set(dataset.index["slide"])):
        adata = dataset.adata(name)
        learn.to_obsm(adata, embeddings, name)
        with whole(folder / f"{name}.h5ad") as partial:
            adata.write_h5ad(partial)
