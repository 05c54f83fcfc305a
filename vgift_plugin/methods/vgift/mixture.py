"""The mixture: maps indices to base records and to samples of tasks. Imports neither torch nor a host."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from ...data.proxy import WrappedDataset
from ...data.shared_file import SharedNumber, Tally
from ...tasks.task import Sample
from .stream import Stream


class MixedDataset(WrappedDataset):
    """The host's dataset followed by self-supervised samples; the host's sampler shuffles them.

    Index i below `len(base)` is the base's own sample i, unchanged. The rest are the tasks' samples, task by task.
    Other attributes are forwarded to the base.

    Args:
        base: the host's dataset.
        parts: (stream, number of samples) of each task.
        encode: returns the host's item, given (sample, name).
        lengths: {length attribute of the host: its value for the samples of each task} (`modality_lengths`: number of
            words, above 0 with a picture). There is one number per task, so that all ranks agree without painting.
    """

    def __init__(
        self,
        base: Any,
        parts: list[tuple[Stream, int]],
        encode: Callable[[Sample, str], Any],
        lengths: dict[str, list[int]],
    ):
        self.base = base
        self.parts = parts
        self.encode = encode
        self.tally = Tally()
        self._lengths = lengths
        self._starts = list(accumulate((count for _, count in parts), initial=len(base)))
        self._epoch = SharedNumber(0)  # so that persistent workers see changes

    @property
    def epoch(self) -> int:
        """The epoch of the samples, from 0 up, shared by all worker processes."""
        return self._epoch.value

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch.value = value

    def __len__(self) -> int:
        return self._starts[-1]

    def plan(self, index: int) -> int | tuple[Stream, int]:
        """Returns the base's index, or (stream, j) for sample j of a task. Negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
        """
        i = operator.index(index)
        i = i + len(self) if i < 0 else i
        if not 0 <= i < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        if i < self._starts[0]:
            return i
        part = bisect_right(self._starts, i) - 1
        return self.parts[part][0], i - self._starts[part]

    def __getitem__(self, index: int) -> Any:
        planned = self.plan(index)
        if isinstance(planned, int):
            return self.base[planned]
        stream, j = planned
        return self.encode(stream(self.epoch, j, self.tally), f"{stream.task.name}-{self.epoch}-{j}")

    def __getattr__(self, name: str) -> Any:
        """Returns a length attribute of the base extended by each task's constant; other attributes are forwarded."""
        if name in self.__dict__.get("_lengths", ()):
            result = list(getattr(self.base, name))
            for (_, count), length in zip(self.parts, self._lengths[name], strict=True):
                result += [length] * count
            return result
        return super().__getattr__(name)
