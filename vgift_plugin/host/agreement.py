"""All ranks must train on the same mixture: a rank that differs would hang the run, or train on something else."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version

from .. import __version__
from ..config import Ask, Flags
from ..errors import ConfigError
from ..mixing import Stream
from ..replay import Replay
from ..sources import fingerprint

PATIENCE_S = 600.0


def require(
    flags: Flags, asks: Sequence[Ask], records: Sequence[dict], parts: list[tuple[Stream, int]], replay: Replay | None
) -> None:
    """Compares what every rank would train on; one process alone has nothing to compare.

    Folders may have other names on other machines: what counts is what is in them. Ranks speak through the store they
    met at, not by a collective: one that trains without the plugin would never join that, and hang all others.

    Raises:
        ConfigError: on every rank, naming what differs and how, or which rank does not answer.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    store, world = dist.distributed_c10d._get_default_store(), dist.get_world_size()
    key = f"vgift-plugin/{next(_calls)}/"
    store.set(key + str(dist.get_rank()), json.dumps(facts(flags, asks, records, parts, replay)))
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
            "may train without self-supervised samples. Is vgift-plugin installed there, and do PYTHONPATH and "
            "PYTHON_VGIFT (set by vgift run) get to that machine?"
        )
    if told := differences(gathered):
        raise ConfigError("the ranks of this run would not train on the same mixture:\n" + told)


_calls = itertools.count()


def facts(
    flags: Flags, asks: Sequence[Ask], records: Sequence[dict], parts: list[tuple[Stream, int]], replay: Replay | None
) -> dict[str, str]:
    """Returns all that decides about samples, {what: value}."""
    return {
        "--data_path, records": fingerprint(f"{one.get('id')} {one.get('image')}" for one in records),
        "--ssl_tasks": ", ".join(f"{ask.task!r}:{ask.weight}" for ask in asks),
        "--ssl_ratio": str(flags.ssl_ratio),
        "--ssl_seed": str(flags.ssl_seed),
        **{f"images of {stream.task.name}": stream.source.fingerprint() for stream, _ in parts},
        "samples": json.dumps({stream.task.name: count for stream, count in parts}),
        "published samples": json.dumps(replay.counts() if replay else {}),
        "vgift-plugin": __version__,
        **{name: version(name) for name in ("numpy", "Pillow")},
    }


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
