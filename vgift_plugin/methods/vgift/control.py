"""Controls of the mixture (`--ssl_control`): runs of the same size without what the samples teach.

V-GIFT (arXiv 2604.12966), Table 5, compares 3 % samples with 3 % repeated records.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...data.proxy import Proxy
from ...data.records import has_picture
from ...data.seeding import permute
from ...errors import ConfigError
from ...tasks.task import Sample
from .mixture import MixedDataset
from .stream import Stream


class ShuffledStream(Proxy):
    """The samples of a stream, each with the picture of the next one: the same words, and nothing to see.

    Args:
        base: the stream.
        count: number of samples an epoch; the last one gets the picture of the first.
    """

    def __init__(self, base: Stream, count: int):
        self.base, self.count = base, count

    def __call__(self, epoch: int, j: int, on_redraw: Callable[[str, str], None] | None = None) -> Sample:
        """Returns sample j of an epoch; see `Stream`."""
        return self.base(epoch, j, on_redraw).with_pictures_of(self.base(epoch, (j + 1) % self.count))


class RepeatingDataset(MixedDataset):
    """A mixture with repeated base records in the place of the samples: as many, at the same indices.

    The records are drawn without replacement among those with a picture until all are used, the same in every epoch.
    Its lengths are those of the mixture, so that the host's sampler draws the same order.

    Args:
        positions: indices of the base records with a picture, ascending.
        seed: the run's `--ssl_seed`.
        mixture: the arguments of `MixedDataset`.
    """

    def __init__(self, positions: np.ndarray, seed: int, *mixture: Any):
        super().__init__(*mixture)
        self.positions, self.seed = positions, seed

    def plan(self, index: int) -> int | tuple[Stream, int]:
        """Returns the index of a base record."""
        planned = super().plan(index)
        if isinstance(planned, int):
            return planned
        number = operator.index(index) % len(self) - len(self.base)
        round_, offset = divmod(number, len(self.positions))
        return int(self.positions[permute(offset, len(self.positions), self.seed, "repeat", round_)])


def pictured(records: Sequence[dict], size: int) -> np.ndarray:
    """Returns the indices of the records with a picture.

    Raises:
        ConfigError: there are none, or the host's dataset, of `size` items, packs several records into one.
    """
    if len(records) != size:
        raise ConfigError("--ssl_control repeat: this run packs several records into one item; train without packing")
    positions = np.flatnonzero([has_picture(record) for record in records])
    if not len(positions):
        raise ConfigError("--ssl_control repeat: no record of the base set has a picture")
    return positions
