"""Who is timed, how, and how much memory a call takes.

Contestants run in turn (a, b, c, a, b, c, …), and the ratio of two is the median of their
ratios turn by turn: what disturbs the machine for a while disturbs both. CPU seconds are
noted too, which other work on the machine hardly changes. The first run of each is the one
whose answer is checked; it counts only where a contestant is too slow for a second one.
Memory is measured in a fresh process: allocators keep what they once had.
"""

import argparse
import ctypes
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROUNDS = 5
"""Most runs of a contestant after the first."""
SLOW_S = 10.0
"""Who takes longer than this runs once, and its memory is not measured."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something that does a case's work.

    Attributes
    ----------
    name
        What the table calls it.
    call
        Does all of the work and returns the answer.
    role
        ``"ours"``; a ``"peer"``, whose answer must be equal; or a ``"limit"``: the raw
        rate of the codec or the memory on the same bytes, with no answer.
    threads
        How many it may use, as it was set up here.
    needs
        Modules without which it is left out; the first one's version is reported.
    equal
        Instead of the case's, where an answer may differ in a way that is stated.
    warm
        Called once before anything is measured: modules load, JIT compilers compile.
    """

    name: str
    call: Callable[[], Any]
    role: Literal["ours", "peer", "limit"] = "peer"
    threads: int = 1
    needs: tuple[str, ...] = ()
    equal: Callable[[Any, Any], None] | None = None
    warm: Callable[[], Any] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One piece of work, and those who do it.

    Attributes
    ----------
    title
        What is done on what, in a line.
    work, unit
        How much of what a call does: 4900 tiles.
    contestants
        The first is ours.
    equal
        Raises ``AssertionError`` when the peer's answer (second) is not ours (first).
    """

    title: str
    work: float
    unit: str
    contestants: Sequence[Contestant]
    equal: Callable[[Any, Any], None]


@dataclass
class Result:
    """What was measured of a contestant.

    Attributes
    ----------
    seconds, cpu
        Of each run, on the clock and on all CPUs; the first run checked the answer.
    peak, kept
        Bytes of memory at a call's peak and at its end, beyond the input.
    fault
        Why it was left out.
    """

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: float = float("nan")
    kept: float = float("nan")
    fault: str = ""

    @property
    def median(self) -> float:
        """Median seconds; of the first run only if it is alone."""
        return statistics.median(self.seconds[1:] or self.seconds)

    def times(self, ours: "Result") -> float:
        """How many times as long as ours it took: the median over the turns both ran in."""
        if 1 in (len(self.seconds), len(ours.seconds)):
            return self.median / ours.median
        pairs = zip(self.seconds[1:], ours.seconds[1:], strict=False)
        return statistics.median(theirs / mine for theirs, mine in pairs)


def threads() -> int:
    """CPUs that this process may use: what each contestant is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(case: Case, *, budget_s: float) -> list[Result]:
    """Check each contestant's answer, then time all of them in turn.

    Parameters
    ----------
    case
        What is done by whom.
    budget_s
        Seconds for all runs of a contestant after its first; one is made even so.
    """
    results = [Result(c, fault=missing(c)) for c in case.contestants]
    _first_runs(case, results)
    racing = [r for r in results if not r.fault]
    for _ in range(ROUNDS):
        for result in racing:
            first, *more = result.seconds
            if first < SLOW_S and (not more or sum(more) + more[-1] <= budget_s):
                _timed(result)
    return results


def missing(contestant: Contestant) -> str:
    """Why a contestant cannot take part, or nothing."""
    for name in contestant.needs:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            return f"skipped: {error}"
    return ""


def _first_runs(case: Case, results: list[Result]) -> None:
    ours = None
    for result in results:
        if result.fault:
            continue
        result.contestant.warm()
        answer = _timed(result)
        if result.contestant.role == "ours":
            ours = answer
        elif result.contestant.role == "peer":
            try:
                (result.contestant.equal or case.equal)(ours, answer)
            except AssertionError as error:
                result.fault = f"answer differs: {' '.join(str(error).split())[:200]}"


def _timed(result: Result) -> Any:
    gc.collect()
    start, busy = time.perf_counter(), _cpu_seconds()
    answer = result.contestant.call()
    result.seconds.append(time.perf_counter() - start)
    result.cpu.append(_cpu_seconds() - busy)
    return answer


def _cpu_seconds() -> float:
    """CPU time of this process's threads and of the children it has waited for."""
    return time.process_time() + sum(os.times()[2:4])


def measure_memory(word: str, case: str, results: Sequence[Result]) -> None:
    """Repeat each call in a process of its own and note its memory.

    Limits and slow contestants are left out. Processes run side by side: that costs time,
    which is not measured here.
    """

    def measure(result: Result) -> None:
        command = [sys.executable, "-m", "benches.measure", word, case, result.contestant.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{word} {case} {result.contestant.name}: no memory measured\n{done.stderr}")
        else:
            memory = json.loads(done.stdout.splitlines()[-1])
            result.peak, result.kept = memory["peak"], memory["kept"]

    timed = [r for r in results if r.seconds and not r.fault and r.median < SLOW_S]
    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(measure, [r for r in timed if r.contestant.role != "limit"]))


def _memory_of(call: Callable[[], Any]) -> dict[str, float]:
    """Bytes that a call takes at its peak and still holds at its end, its answer included.

    From ``/proc``, for ``ru_maxrss`` outlives ``exec``: a child of a large process would
    start with its parent's peak.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    answer = call()
    memory = {"peak": _status("VmHWM") - before, "kept": _status("VmRSS") - before}
    del answer
    return memory


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    """Print the memory of one contestant; run in a fresh process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs=3, metavar="WORD CASE CONTESTANT")
    word, name, who = parser.parse_args().names
    case = importlib.import_module(f"benches.bench_{word}").CASES[name](quick=False)
    contestant = next(c for c in case.contestants if c.name == who)
    if fault := missing(contestant):
        sys.exit(fault)
    contestant.warm()
    print(json.dumps(_memory_of(contestant.call)))


if __name__ == "__main__":
    main()
