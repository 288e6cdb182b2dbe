"""Tables, the line a word is judged by, and the dated CSV."""

import csv
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

import stfast
from benches.measure import Case, Result

_HEAD = ("", "version", "threads", "median s", "CPU s", "× ours", "peak (kept) MB", "runs")
_MODULE_OF = {"PIL": "pillow", "openslide": "openslide-python"}


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def machine() -> str:
    """One line on where this ran, and what ran."""
    python = platform.python_version()
    return f"stfast {stfast.__version__} on {cpu()}, {os.cpu_count()} cores, Python {python}"


def table(case: Case, results: list[Result]) -> str:
    """The contestants of a case, one a line, ours first."""
    lines = [[*_HEAD[:4], f"{case.unit}/s", *_HEAD[4:]]]
    lines += [_line(case, result, results[0]) for result in results if not result.fault]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [case.title]
    for line in lines:
        cells = zip(line, widths, strict=True)
        aligned = [c.rjust(w) if i > 1 else c.ljust(w) for i, (c, w) in enumerate(cells)]
        text.append(f"  {'  '.join(aligned)}".rstrip())
    text += [f"  {r.contestant.name}: {r.fault}" for r in results if r.fault]
    return "\n".join(text)


def _line(case: Case, result: Result, ours: Result) -> list[str]:
    who = result.contestant
    memory = f"{result.peak / 1e6:,.0f} ({result.kept / 1e6:,.0f})"
    return [
        who.name,
        version(result),
        str(who.threads),
        f"{result.median:.3f}",
        f"{case.work / result.median:,.4g}",
        f"{median(result.cpu):.3f}",
        f"{result.times(ours):.2f}",
        "" if isnan(result.peak) else memory,
        str(len(result.seconds)),
    ]


def verdict(word: str, results: list[Result]) -> list[str]:
    """``<word>: <ratio>× <peer>`` for the fastest peer, then the share of each limit."""
    ours = results[0]
    timed = [r for r in results if r.seconds and not r.fault]
    peers = sorted((r for r in timed if r.contestant.role == "peer"), key=lambda r: r.median)
    limits = sorted((r for r in timed if r.contestant.role == "limit"), key=lambda r: r.median)
    lines = [f"{word}: {r.times(ours):.2f}× {r.contestant.name}" for r in peers]
    lines += [f"{word}: {r.times(ours):.2f} of {r.contestant.name}" for r in limits]
    return lines or [f"{word}: no peer ran"]


def version(result: Result) -> str:
    """The version of what a contestant mainly consists of."""
    if result.contestant.role == "ours":
        return stfast.__version__
    if not result.contestant.needs:
        return ""
    module = result.contestant.needs[0]
    try:
        return metadata.version(_MODULE_OF.get(module, module))
    except metadata.PackageNotFoundError:
        return ""


def rows(word: str, name: str, case: Case, results: list[Result]) -> list[dict[str, Any]]:
    """What the CSV keeps of a case: a line a contestant, each complete in itself."""
    common = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "stfast": stfast.__version__,
        "commit": _commit(),
        "word": word,
        "case": name,
        "title": case.title,
        "work": round(case.work, 3),
        "unit": case.unit,
    }
    return [
        common
        | {
            "contestant": r.contestant.name,
            "role": r.contestant.role,
            "version": version(r),
            "threads": r.contestant.threads,
            "runs": len(r.seconds),
            "median_s": round(r.median, 4),
            "best_s": round(min(r.seconds), 4),
            "cpu_s": round(median(r.cpu), 4),
            "times_ours": round(r.times(results[0]), 3),
            "peak_mb": "" if isnan(r.peak) else round(r.peak / 1e6),
            "kept_mb": "" if isnan(r.kept) else round(r.kept / 1e6),
        }
        for r in results
        if r.seconds and not r.fault
    ]


def _commit() -> str:
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


def record(lines: list[dict[str, Any]]) -> Path:
    """Write ``record/<cpu>-<cores>/<date>.csv``; a later run of the day replaces it."""
    slug = re.sub("[^a-z0-9]+", "-", cpu().lower()).strip("-")
    folder = Path(__file__).parent / "record" / f"{slug}-{os.cpu_count()}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(UTC).date().isoformat()}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return path
