"""Worker processes that exit when their parent exits, however it exits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ..errors import ConfigError

Compute = Callable[[range], list[Any]]
CURE = "run the same command again to go on, with fewer --workers"


def computed(
    blocks: Sequence[range], compute: Compute, workers: int, cure: str = CURE
) -> Generator[tuple[range, list[Any]], None, None]:
    """Yields (block, its items) in order of completion, computed in this process or in worker processes.

    Args:
        blocks: ranges of item numbers.
        compute: returns the items of a block. Workers are forked if possible; otherwise `compute` is pickled.
        workers: number of worker processes; below 2, this process computes.
        cure: what to do where a worker process was killed.

    Raises:
        ConfigError: a worker process was killed.
    """
    if min(workers, len(blocks)) < 2:
        yield from ((block, compute(block)) for block in blocks)
        return
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(min(workers, len(blocks)), context, _start_worker, (compute, os.getpid())) as pool:
        try:
            futures = {pool.submit(_work, block): block for block in blocks}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BaseException as err:
            for worker in multiprocessing.active_children():
                if worker not in others:
                    worker.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(err, BrokenProcessPool):
                raise ConfigError(f"a worker process was killed, most likely for lack of memory; {cure}") from err
            raise


_compute: Compute


def _start_worker(compute: Compute, parent: int) -> None:
    """Prepares a worker process: it ignores interrupts, which its parent handles, and exits when its parent does."""
    global _compute
    _compute = compute
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(block: range) -> list[Any]:
    return _compute(block)
