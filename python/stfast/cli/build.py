"""`stfast build`: one training set of many raw slides."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfast.cli._app import Json, SpanUm, Workers, app
from stfast.cli._show import build_bars, rows_of, show

if TYPE_CHECKING:
    from stfast.dataset._need import Need
    from stfast.dataset._plan import Plan

Hvg = Annotated[
    str,
    typer.Option(
        help="pearson:N: each slide's N best genes; overlap:N: the N best that all slides have."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Memory for slides staged side by side, such as 16G; default: 4/5 of what is free."
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(help="i/n: stage part i of n of the slides, without making the dataset."),
]
Merge = Annotated[
    bool, typer.Option("--merge", help="Make the dataset from what --shard runs staged.")
]
DaskAddress = Annotated[
    str | None,
    typer.Option(
        help="Address of the Dask scheduler that stages the slides: tcp://scheduler:8786."
    ),
]


@app.command()
def build(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="CSV or Parquet file with one row per slide.")],
    out: Annotated[Path, typer.Argument(help="Folder of the dataset to write.")],
    bin_size: Annotated[float, typer.Option(help="Side of a Visium HD bin, in µm.")] = 8,
    size: Annotated[int, typer.Option(help="Side of a tile, in pixels.")] = 224,
    span_um: SpanUm = None,
    hvg: Hvg = "pearson:128",
    tiles: Annotated[str, typer.Option(help="Encoding of the tiles: jpeg, png or raw.")] = "jpeg",
    quality: Annotated[int, typer.Option(help="JPEG quality, from 1 to 100.")] = 95,
    seed: Annotated[int, typer.Option(help="Seed of the order of spots.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Leave out misplaced slides.")] = False,
    shard_bytes: Annotated[int, typer.Option(help="Bytes after which a new shard begins.")] = 1
    << 28,
    memory: Memory = None,
    shard: Shard = None,
    merge: Merge = False,
    dask: DaskAddress = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Build one training set from many raw slides; finished slides are not repeated.

    The exit status is 1 if a slide failed; the dataset contains the other slides.
    """
    from stfast.dataset._build import run
    from stfast.dataset._plan import prepare

    options = {k: v for k, v in context.params.items() if k not in ("manifest", "out", "as_json")}
    plan = prepare(manifest, out, **options)
    if not as_json and plan.merge != "only":
        print(_words(plan, plan.need()), file=sys.stderr)
    with build_bars() as progress:
        report = run(plan, progress)
    found = vars(report) | {"root": str(report.root)}
    shown: dict[str, Any] = found if as_json else {k: v for k, v in found.items() if v}
    show(found, as_json, ("", ""), rows_of(shown))
    if report.failed:
        raise typer.Exit(1)


def _words(plan: "Plan", need: "Need") -> str:
    """What is about to be written, before anything is."""
    import shutil

    if not need.spots:
        return "every slide is staged"
    free = shutil.disk_usage(plan.root).free
    words = (
        f"{need.spots:,} spots to stage: about {need.disk / 1e9:,.1f} GB in {plan.root}/staging "
        f"and as many in the dataset; {free / 1e9:,.1f} GB are free there"
    )
    short = "; that may not be enough" if free < 2 * need.disk else ""
    return f"{words}{short}. A slide takes up to {need.memory / 1e9:,.1f} GB of memory."
