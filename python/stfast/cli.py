"""The command ``stfast``: arguments to functions, and words for what came back.

Progress goes to stderr, and only to a terminal; ``--json`` prints one object for
machines. An error is one line, and the exit status 1. What a command needs is
imported when it runs, so that ``--help`` answers at once.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import stfast
from stfast._output import whole

if TYPE_CHECKING:
    import polars as pl

app = typer.Typer(
    name="stfast",
    help="Spatial transcriptomics, from raw slide to training batch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_EXPECTED = (
    OSError,
    ValueError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    ImportError,
)

Rows: TypeAlias = list[tuple[str, ...]]
Workers = Annotated[int | None, typer.Option(help="Threads; default: all this process may use.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Size = Annotated[int, typer.Option(help="Pixels of a tile's side.")]
SpanUm = Annotated[
    float | None, typer.Option(help="µm of a window's side; default: the spot's diameter.")
]
BinSize = Annotated[int, typer.Option(help="µm of a bin's side.")]
Slide = Annotated[Path, typer.Argument(help="Folder of a slide.")]


def main() -> NoReturn:
    """Run the command line; called by the script ``stfast``."""
    try:
        app(standalone_mode=True)
    except _EXPECTED as error:
        print(f"stfast: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stfast: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(stfast.__version__)
        raise typer.Exit


@app.command()
def demo(
    slide: Annotated[
        Path | None, typer.Option(help="Your own slide; default: one that is made.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the slide and the picture go.")] = Path(
        "stfast-demo"
    ),
    bin_size: BinSize = 8,
    size: Size = 224,
    span_um: SpanUm = None,
    gene: Annotated[str | None, typer.Option(help="Gene to colour the picture by.")] = None,
    seed: Annotated[int, typer.Option(help="Of the slide and of the order of spots.")] = 0,
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
        report=lambda step: _say(f"{step.name}: {step.did}"),
    )
    found = {
        "steps": [vars(step) for step in steps],
        "picture": str(picture),
        "peak_memory_mb": round(_peak_memory_mb()),
    }
    rows: Rows = [(s.name, s.did, f"{s.seconds:.2f} s", s.throughput) for s in steps]
    rows += [("memory", "at its peak", "", f"{found['peak_memory_mb']} MB")]
    _show(found, as_json, ("step", "what", "time", "throughput"), rows)
    if not as_json:
        print(picture)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="An image, or the folder of a slide.")],
    as_json: Json = False,
) -> None:
    """Say what an image or a slide is."""
    found, rows = _slide_info(path) if path.is_dir() else _image_info(path)
    _show(found, as_json, ("", ""), rows)


def _image_info(path: Path) -> tuple[dict[str, Any], Rows]:
    image = stfast.open_image(path)
    levels = [
        {
            "width": level.header.width,
            "height": level.header.height,
            "downsample": round(level.downsample[0], 4),
            "codec": level.header.codec,
            "block": [level.header.block_width, level.header.block_height],
            "blocks": len(level.header.offsets),
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
    for number, (level, header) in enumerate((level, level.header) for level in image.levels):
        sides = f"{header.width} × {header.height} px, 1/{level.downsample[0]:g}"
        blocks = f"{len(header.offsets)} {header.codec} blocks"
        block = f"{header.block_width} × {header.block_height}"
        rows.append((f"level {number}", f"{sides}, {blocks} of {block}"))
    return found, rows


def _slide_info(path: Path) -> tuple[dict[str, Any], Rows]:
    from stfast import _spatial
    from stfast.readers.visium_hd import describe_visium_hd, is_visium_hd

    if is_visium_hd(path):
        found = {"path": str(path), **describe_visium_hd(path)}
        return found, _rows(found)
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
    return found, _rows(found)


def _rows(found: dict[str, Any]) -> Rows:
    """What was found, a line each; what is nested under the name it has."""
    rows: Rows = []
    for key, value in found.items():
        nested = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(f"{key} {inner}".strip(), _word(item)) for inner, item in nested]
    return rows


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@app.command(name="bin")
def bin_(
    source: Annotated[Path, typer.Argument(help="Visium HD folder, or an h5ad of its squares.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad to write.")],
    bin_size: BinSize = 8,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Aggregate the squares of a Visium HD slide into bins."""
    if source.suffix == ".h5ad":
        import anndata

        squares = anndata.read_h5ad(source)
        with _progress("bins", None) as advance:
            binned = stfast.aggregate_bins(squares, bin_size, workers=workers, progress=advance)
    else:
        binned = stfast.read_visium_hd(source, bin_size, workers=workers)
    with whole(output) as partial:
        binned.write_h5ad(partial, compression="gzip")
    found = {
        "output": str(output),
        "bins": binned.n_obs,
        "genes": binned.n_vars,
        "counts": int(binned.X.sum()),
    }
    _show(found, as_json, ("", ""), _rows(found))


@app.command()
def tile(
    source: Annotated[Path, typer.Argument(help="Folder of a slide, or an image with --spots.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".npy of tiles; its spots go to .csv beside it.")
    ],
    spots: Annotated[
        Path | None, typer.Option(help="CSV with columns x, y (or xaxis, yaxis, r) in px.")
    ] = None,
    size: Size = 224,
    span_um: SpanUm = None,
    mpp: Annotated[float | None, typer.Option(help="µm per pixel, where nothing says.")] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Cut a tile around each spot."""
    from stfast._spots import from_folder, from_table, write_tiles

    chosen = from_folder(source) if source.is_dir() else from_table(source, spots)
    span = chosen.span(span_um, mpp)
    with _progress("tiles", int(chosen.inside().sum())) as advance:
        found = write_tiles(chosen, output, size=size, span=span, workers=workers, progress=advance)
    _show(found, as_json, ("", ""), _rows(found))


@app.command()
def hvg(
    slide: Slide,
    flavor: Annotated[str, typer.Option(help="pearson_residuals or seurat.")] = "pearson_residuals",
    n_top: Annotated[int, typer.Option(help="Genes to choose.")] = 128,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".parquet or .csv of all genes.")
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Choose highly variable genes from the raw counts of a slide's spots in tissue."""
    import polars as pl

    adata = stfast.read(slide)
    adata = adata[adata.obs["in_tissue"] == 1]
    table = stfast.highly_variable_genes(
        adata,
        flavor,  # type: ignore[arg-type]
        n_top,
        normalize=flavor == "seurat",
        inplace=False,
        workers=workers,
    )
    assert table is not None
    if output is not None:
        columns = {name: table[name].to_numpy() for name in table}
        _write_table(pl.DataFrame({"gene": table.index.to_list(), **columns}), output)
    score = "residual_variances" if flavor == "pearson_residuals" else "dispersions_norm"
    best = table[table["highly_variable"]].sort_values(score, ascending=False, kind="stable")
    found = {"flavor": flavor, "genes": best.index.tolist()}
    top = best.head(20)
    shown = zip(top.index, top[score], top["means"], strict=True)
    rows: Rows = [(gene, f"{value:.4g}", f"{mean:.4g}") for gene, value, mean in shown]
    _show(found, as_json, ("gene", score, "mean"), rows)


def _write_table(table: "pl.DataFrame", output: Path) -> None:
    if output.suffix not in (".parquet", ".csv"):
        raise ValueError(f"output: expected a name ending in .parquet or .csv, got {output}")
    with whole(output) as partial:
        if output.suffix == ".csv":
            table.write_csv(partial)
        else:
            table.write_parquet(partial)


def _show(found: dict[str, Any], as_json: bool, header: tuple[str, ...], rows: Rows) -> None:
    if as_json:
        print(json.dumps(found, default=str))
        return
    table = Table(*header, box=None, show_header=any(header), pad_edge=False)
    for row in rows:
        table.add_row(*(Text(word, overflow="fold") for word in row))
    # What is no terminal may be read by a program: no line is broken for it.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table, crop=False)


def _say(text: str) -> None:
    """A line on stderr; nothing where that is no terminal."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], object] | None]:
    """A bar on stderr; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _peak_memory_mb() -> float:
    """Most memory this process has held, in MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
