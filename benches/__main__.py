"""The command: `python -m benches [words...] [--quick] [--record]`.

Exit status 1 means that a peer's answer was not ours: then one of the two is wrong, and
no number is worth reading before it is known which.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence

from benches import measure, report

WORDS = ("h5", "bins", "tiles", "hvg", "readers", "convert", "loader", "build", "cells")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benches of the words; print tables, then one line a peer."""
    options = _parse(arguments)
    start = time.perf_counter()
    print(report.machine(), flush=True)
    lines: list[str] = []
    recorded: list[dict[str, object]] = []
    wrong = False
    for word in options.words or WORDS:
        cases = importlib.import_module(f"benches.bench_{word}").CASES
        for name, make in cases.items():
            case = make(quick=options.quick)
            results = measure.run(case, budget_s=1.0 if options.quick else 6.0)
            if not options.quick:
                measure.measure_memory(word, name, results)
            print(f"\n{word}, {name}: {report.table(case, results)}", flush=True)
            label = word if name == next(iter(cases)) else f"{word} {name}"
            lines += report.verdict(label, results)
            recorded += report.rows(word, name, case, results)
            wrong |= any(result.fault.startswith("answer") for result in results)
    print(f"\n{chr(10).join(lines)}\n\n{time.perf_counter() - start:.0f} s")
    if options.record:
        print(f"recorded in {report.record(recorded)}")
    return int(wrong)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benches", description="Each word beside its peers.")
    parser.add_argument("words", nargs="*", metavar="word", help=f"of {', '.join(WORDS)}; all")
    parser.add_argument("--quick", action="store_true", help="small inputs: does it run?")
    parser.add_argument("--record", action="store_true", help="write benches/record/…csv")
    options = parser.parse_args(arguments)
    if unknown := set(options.words) - set(WORDS):
        parser.error(f"expected words of {', '.join(WORDS)}, got {', '.join(sorted(unknown))}")
    if options.record and (options.quick or options.words):
        parser.error("--record: expected all words on full inputs")
    return options


if __name__ == "__main__":
    sys.exit(main())
