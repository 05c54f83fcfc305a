"""Work on several cores with a result that does not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")
CHUNKS = 8  # for each process, so that none is idle for long at the end
LARGEST_CHUNK = 25

_function: Callable[[Any], Any] | None = None
_limit: Any = None


def parallel_map(
    function: Callable[[Argument], Result], arguments: Sequence[Argument], workers: int | None, label: str
) -> list[Result]:
    """Returns [function(argument), ...] in order, computed in several processes, one thread each.

    Args:
        function: must be picklable where processes cannot be forked and `workers` is not 1.
        arguments: one for each call.
        workers: number of processes; None for one a core. 1 computes in this process.
        label: of the progress bar.
    """
    import sklearn.ensemble  # noqa: F401  loaded once, before the processes start; see _one_thread
    from tqdm import tqdm

    workers = min(workers or _cores(), max(1, len(arguments)))
    chunk = max(1, min(LARGEST_CHUNK, len(arguments) // (workers * CHUNKS)))
    bar = {"total": len(arguments), "desc": label, "unit": "", "leave": False}
    if workers == 1:
        with _one_thread():
            return list(tqdm(map(function, arguments), **bar))
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(function,)) as pool:
        return list(tqdm(pool.map(_call, arguments, chunksize=chunk), **bar))


def _one_thread() -> Any:
    """Returns a context in which BLAS and OpenMP use one thread.

    Threads of several processes that wait for each other on the same cores took most of the time, and the order in
    which threads add numbers would change the last digits.
    """
    import sklearn.ensemble  # noqa: F401  loads OpenMP; only libraries already loaded can be limited
    from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

    return threadpool_limits(1)


def _start(function: Callable[[Any], Any]) -> None:
    global _function, _limit
    _function, _limit = function, _one_thread()  # the limit holds for as long as the process lives


def _call(argument: Any) -> Any:
    assert _function is not None  # set by `_start`
    return _function(argument)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
