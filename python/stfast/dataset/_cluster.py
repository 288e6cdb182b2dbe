"""Slides staged by the workers of a dask.distributed cluster that runs already.

The plan is the same, and so are the bytes; Dask decides who stages what, tries again what
a dying worker or a failing disk interrupted, and shows it on its dashboard. Every machine
must see the same folders under the same names.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stfast import _check
from stfast.dataset import _task
from stfast.dataset._task import Outcome, Task

if TYPE_CHECKING:
    from distributed import Client, Future

_RETRIES = 3
_WAIT_S = 120.0
"""For the lock of a slide that a worker which Dask has given up on may still hold."""
_CONNECT_S = 20.0


def run(
    tasks: list[Task], address: str, *, workers: int | None, tell: Callable[[Outcome], Any]
) -> None:
    """Run tasks on a cluster, telling each one's outcome when it has ended.

    Raises
    ------
    ConnectionError
        The scheduler cannot be reached, or went away.
    ImportError
        distributed is not installed.
    """
    try:
        from distributed import Client
    except ImportError as error:
        found = f"expected distributed (pip install 'stfast[distributed]'), got {error}"
        raise ImportError(found) from error
    if not tasks:
        return
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectionError(f"dask: expected a scheduler at {address}, got {error}") from error
    try:
        with client.as_current():
            _gather(client, tasks, address, workers, tell)
    finally:
        client.close(timeout=2)


def _gather(
    client: "Client",
    tasks: list[Task],
    address: str,
    workers: int | None,
    tell: Callable[[Outcome], Any],
) -> None:
    from distributed import as_completed

    futures = {
        client.submit(
            _staged_by_a_worker,
            replace(task, wait_s=_WAIT_S),
            workers,
            key=f"stfast-{task.slide}-{client.id}",
            retries=_RETRIES,
            pure=False,
        ): task.slide
        for task in tasks
    }
    left = set(futures.values())
    for future in as_completed(list(futures)):
        outcome = _outcome(future, futures[future])
        if outcome is None or client.status != "running":
            n = len(left)
            raise ConnectionError(
                f"dask: expected the scheduler at {address} to stay, but it went away with "
                f"{n} of {len(tasks)} slides to go; the same command goes on where it was"
            )
        left.discard(outcome.slide)
        tell(outcome)


def _outcome(future: "Future", slide: str) -> Outcome | None:
    """What came of a slide; ``None``: the scheduler is gone."""
    if future.status in ("cancelled", "lost"):
        return None
    if future.status == "finished":
        found = future.result()
        assert isinstance(found, Outcome)
        return found
    error = future.exception()
    return Outcome(slide, fault=str(error) if type(error) is OSError else _task.told(error))


def _staged_by_a_worker(task: Task, workers: int | None) -> Outcome:
    """Stage a slide with this worker's share of its threads.

    A worker of Dask that runs several tasks at a time divides ``workers`` among them.
    What a disk or a network may cause is raised, for Dask to try again; what the slide's
    files cause is an outcome.
    """
    from distributed import get_worker

    side_by_side = get_worker().state.nthreads
    threads = max(_check.workers(workers) // side_by_side, 1)
    outcome = _task.run(task, threads)
    if outcome.transient:
        raise OSError(outcome.fault)
    return outcome
