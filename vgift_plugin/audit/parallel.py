"""Work on several cores with a result that does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from ..data.jobs import Ranks, progress
from ..data.workers import computed

Argument = TypeVar("Argument")
Result = TypeVar("Result")
CHUNKS = 8  # for each process, so that none is idle for long at the end
LARGEST_CHUNK = 25


def parallel_map(
    function: Callable[[Argument], Result], arguments: Sequence[Argument], workers: int | None, label: str
) -> list[Result]:
    """Returns [function(argument), ...] in order, computed in several processes, one thread each.

    Args:
        function: must be picklable where processes cannot be forked and `workers` is not 1.
        arguments: one for each call.
        workers: number of processes; None for one a core. 1 computes in this process.
        label: of the progress bar.

    Raises:
        ConfigError: a worker process was killed.
    """
    import sklearn.ensemble  # noqa: F401  loaded once, before the processes start; see _one_thread

    total = len(arguments)
    workers = min(workers or Ranks().cores, max(1, total))
    chunk = max(1, min(LARGEST_CHUNK, total // (workers * CHUNKS)))
    found: dict[int, list[Result]] = {}
    with progress(total, label) as bar:
        blocks = [range(start, min(start + chunk, total)) for start in range(0, total, chunk)]
        compute = partial(_compute, function, arguments)
        for block, results in computed(blocks, compute, workers, cure="run the same command again with a smaller -n"):
            found[block.start] = results
            bar.update(len(block))
    return [result for start in sorted(found) for result in found[start]]


def _compute(function: Callable[[Argument], Result], arguments: Sequence[Argument], block: range) -> list[Result]:
    with _one_thread():
        return [function(arguments[k]) for k in block]


def _one_thread() -> Any:
    """Returns a context in which BLAS and OpenMP use one thread.

    Threads of several processes that wait for each other on the same cores took most of the time, and the order in
    which threads add numbers would change the last digits.
    """
    import sklearn.ensemble  # noqa: F401  loads OpenMP; only libraries already loaded can be limited
    from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

    return threadpool_limits(1)
