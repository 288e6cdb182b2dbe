"""`stfast demo`: the main job from end to end, timed."""

from pathlib import Path
from typing import Annotated

import typer

from stfast._platform import peak_bytes
from stfast.cli._app import BinSize, Json, Size, SpanUm, Workers, app
from stfast.cli._show import Rows, say, show


@app.command()
def demo(
    slide: Annotated[
        Path | None, typer.Option(help="Your own slide; default: the demo makes one.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder for the slide and the picture.")] = Path(
        "stfast-demo"
    ),
    bin_size: BinSize = 8,
    size: Size = 224,
    span_um: SpanUm = None,
    gene: Annotated[str | None, typer.Option(help="Gene to colour the picture by.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the slide and of the order of spots.")] = 0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Run the main job: read, aggregate, choose genes, load batches, draw."""
    from stfast.demo import run_demo

    steps, picture = run_demo(
        folder,
        slide=slide,
        bin_size=bin_size,
        size=size,
        span_um=span_um,
        gene=gene,
        seed=seed,
        workers=workers,
        report=lambda step: say(f"{step.name}: {step.did}"),
    )
    peak = peak_bytes()
    found = {
        "steps": [vars(step) for step in steps],
        "picture": str(picture),
        "peak_memory_mb": None if peak is None else round(peak / 1e6),
    }
    rows: Rows = [(s.name, s.did, f"{s.seconds:.2f} s", s.throughput) for s in steps]
    if peak is not None:
        rows += [("memory", "at its peak", "", f"{found['peak_memory_mb']} MB")]
    show(found, as_json, ("step", "what", "time", "throughput"), rows)
    if not as_json:
        print(picture)
