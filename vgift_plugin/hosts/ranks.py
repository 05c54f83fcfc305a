"""Checks that ranks agree; a differing rank would hang the run or silently train on other data."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from ..errors import ConfigError

PATIENCE_S = 600.0


def require_equal(facts: dict[str, str]) -> None:
    """Compares {what: value} over all ranks; one process alone has nothing to compare.

    Folders may have different names on different machines; their content is compared. It uses the rendezvous store, not
    a collective, since a rank without the plugin would block a collective.

    Raises:
        ConfigError: on every rank, naming what differs and how, or which rank does not answer.
    """
    import torch.distributed as dist

    store = _store()
    if store is None:
        return
    world = dist.get_world_size()
    key = f"vgift-plugin/{next(_calls)}/"
    store.set(key + str(dist.get_rank()), json.dumps(facts))
    deadline, gathered, silent = time.monotonic() + PATIENCE_S, [], []
    for rank in range(world):
        try:
            store.wait([key + str(rank)], timedelta(seconds=max(1.0, deadline - time.monotonic())))
            gathered.append(json.loads(store.get(key + str(rank))))
        except RuntimeError:  # the store's timeout
            silent.append(rank)
    if silent:
        raise ConfigError(
            f"{_ranks(silent)} of {world} did not say within {PATIENCE_S / 60:g} minutes what its training set is, and "
            "may train without what was asked for. Is vgift-plugin installed there, and do PYTHONPATH and "
            "PYTHON_VGIFT (set by vgift run) get to that machine?"
        )
    if found := differences(gathered):
        raise ConfigError("the ranks of this run would not train on the same mixture:\n" + found)


_calls = itertools.count()


def _store() -> Any:
    """Returns the store at which the ranks met; None where there is but one."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return dist.distributed_c10d._get_default_store()


def from_rank_zero(make: Callable[[], str]) -> str:
    """Returns, on all ranks, what rank 0 makes; the others wait for it.

    Raises:
        ConfigError: rank 0 could not make it, or does not answer.
    """
    import torch.distributed as dist

    store = _store()
    if store is None:
        return make()
    key = f"vgift-plugin/{next(_calls)}"
    if dist.get_rank() == 0:
        try:
            made = make()
        except ConfigError as err:
            store.set(key, json.dumps({"error": str(err)}))
            raise
        store.set(key, json.dumps({"made": made}))
        return made
    try:
        store.wait([key], timedelta(seconds=PATIENCE_S))
    except RuntimeError as err:  # the store's timeout
        raise ConfigError(f"rank 0 did not answer within {PATIENCE_S / 60:g} minutes") from err
    told = json.loads(store.get(key))
    if "error" in told:
        raise ConfigError(told["error"])
    return told["made"]


def differences(gathered: Sequence[dict[str, str]]) -> str:
    """Returns one line for each fact on which ranks differ, with the ranks that hold each value."""
    lines = []
    for name in dict.fromkeys(name for one in gathered for name in one):
        holders: dict[str, list[int]] = {}
        for rank, one in enumerate(gathered):
            holders.setdefault(one.get(name, "nothing"), []).append(rank)
        if len(holders) > 1:
            shown = "; ".join(f"{value} on {_ranks(ranks)}" for value, ranks in holders.items())
            lines.append(f"  {name}: {shown}")
    return "\n".join(lines)


def _ranks(ranks: Sequence[int]) -> str:
    listed = ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
    return f"rank{'s' * (len(ranks) > 1)} {listed}"
