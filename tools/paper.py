"""All of the paper's experiments on one page: `make paper`.

Without a dataset it makes one of generated tissue and a tiny CLIP tower, which a laptop
trains in a minute; with ``--dataset`` and ``--model`` it runs the real thing.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import stfast
from stfast import learn

ROOT = Path(__file__).parent.parent
SMALL = {"epochs": 15, "batch_size": 128, "lr": 1e-3, "weight_decay": 1e-4}


def main() -> None:
    """Run the experiments; print where the page is."""
    options = _parse()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if options.dataset:
        dataset, models, small = stfast.Dataset(options.dataset), _named(options.model), {}
    else:
        dataset, models, small = *_generated(out), SMALL
        options.held = options.held or ["s3", "s4", "s5"]
        options.gene = options.gene or ["g00", "g09"]
    training: dict[str, Any] = {**small, **({"epochs": options.epochs} if options.epochs else {})}
    page = learn.write_report(
        dataset,
        out,
        models=models,
        held=options.held,
        genes=options.gene,
        labels=options.labels,
        device=options.device,
        report=lambda words: print(f"stfast: {words}", file=sys.stderr),
        **training,
    )
    print(page)


def _generated(out: Path) -> tuple[stfast.Dataset, dict[str, Any]]:
    """Six slides of known layers, and a tower of random weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    from oracles_tissue import build_tissue, write_clip

    root = out / "tissue/built"
    if not (root / "dataset.json").exists():
        build_tissue(out / "tissue", side=360, pitch=18)
        write_clip(out / "tiny-clip", width=64, dropout=0.0)
    return stfast.Dataset(root), {"tiny CLIP": out / "tiny-clip"}


def _named(words: list[str]) -> dict[str, Any]:
    pairs = (word.partition("=") for word in words)
    return {name if equals else Path(name).name: path or name for name, equals, path in pairs}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("make paper", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="paper", help="folder of all that is made")
    parser.add_argument("--dataset", help="a built dataset, say of the 12 DLPFC slides")
    parser.add_argument(
        "--model",
        action="append",
        help="NAME=MODEL; default: CLIP and PLIP",
        default=None,
    )
    parser.add_argument("--held", action="append", default=[], help="slide not to train on")
    parser.add_argument("--gene", action="append", default=[], help="gene to predict")
    parser.add_argument("--labels", help="CSV or Parquet of slide, spot, label")
    parser.add_argument("--epochs", type=int, help="of training")
    parser.add_argument("--device", help="cpu or cuda")
    options = parser.parse_args()
    options.model = options.model or ["CLIP=openai/clip-vit-base-patch32", "PLIP=vinid/plip"]
    return options


if __name__ == "__main__":
    main()
