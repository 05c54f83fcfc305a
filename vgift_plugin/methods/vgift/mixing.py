"""Who speaks at index i: a base record, or which sample of which task. Arithmetic and painting; no torch, no host."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing.sharedctypes import RawValue
from typing import Any

import numpy as np
from PIL import Image

from ...data.photos import ImageSource
from ...data.proxy import Around
from ...data.seeding import generator, permute
from ...data.tally import Tally
from ...errors import ConfigError, NoSuitableImageError, TaskError, UnsuitableImage
from ...tasks.task import Params, Sample, Task
from .rows import RowSource

MAX_REDRAWS = 10


@dataclass(frozen=True)
class Stream:
    """Makes sample j of one task: a pure function of (seed, epoch, j), the same in every process and order.

    Photographs are drawn without replacement until all were used, in another order each time round and each epoch.

    Attributes:
        task: what is made.
        source: the photographs.
        seed: the run's `--ssl_seed`.
    """

    task: Task
    source: ImageSource
    seed: int

    def __post_init__(self):
        if len(self.source) < self.needs:
            raise ConfigError(
                f"task {self.task.name} needs {self.needs} different images; {self.source.where} has {len(self.source)}"
            )

    @property
    def needs(self) -> int:
        """How many entries of the source one sample takes."""
        return self.task.images

    def picks(self, epoch: int, j: int, attempt: int = 0) -> list[int]:
        """Returns the numbers of the photographs of sample j, all different; `attempt` counts the redraws."""
        size, need = len(self.source), self.needs
        chosen: list[int] = []
        for position in range(j * need, j * need + need):
            round_, offset = divmod(position, size)
            pick = permute(offset, size, self.seed, epoch, self.task.name, round_, attempt)
            while pick in chosen:  # only where one round ends and the next begins within a sample
                pick = (pick + 1) % size
            chosen.append(pick)
        return chosen

    def __call__(self, epoch: int, j: int, on_redraw: Callable[[str, str, list[str]], None] | None = None) -> Sample:
        """Returns sample j of an epoch.

        Args:
            epoch: from 0 up.
            j: from 0 up.
            on_redraw: told the task's name, the reason and the paths, for every unsuitable draw.

        Raises:
            NoSuitableImageError: the first draw and ten redraws were all unsuitable.
            TaskError: the task failed otherwise; its cause is chained.
        """
        tried: list[str] = []
        for attempt in range(1 + MAX_REDRAWS):
            picks = self.picks(epoch, j, attempt)
            paths = self._paths(picks)
            try:
                return self._make(epoch, j, attempt, picks, paths)
            except UnsuitableImage as unsuitable:
                tried.append(f"{' + '.join(paths)}: {unsuitable.reason}")
                if on_redraw is not None:
                    on_redraw(self.task.name, unsuitable.reason, paths)
            except Exception as err:
                raise TaskError(
                    f"task {self.task.name} failed on {' + '.join(paths)} (ssl_seed {self.seed}, epoch {epoch}, "
                    f"sample {j}, redraw {attempt}): {type(err).__name__}: {err}"
                ) from err
        raise NoSuitableImageError(
            f"task {self.task.name} found no suitable image in {len(tried)} draws from the {len(self.source):,} of "
            f"{self.source.where} (ssl_seed {self.seed}, epoch {epoch}, sample {j}):\n  "
            + "\n  ".join(tried)
            + "\nChoose other images (--ssl_image_folder, --ssl_images), leave the task out, or relax its knobs "
            "(--ssl_config; `vgift tasks` lists them)."
        )

    def _make(self, epoch: int, j: int, attempt: int, picks: list[int], paths: list[str]) -> Sample:
        task = self.task
        images, params = self._choices(generator(self.seed, "sample", task.name, epoch, j, attempt), picks)
        instruction, response = task.ask(params)
        image, spans = task.render(images, params), task.informative_spans(params)
        return Sample(task.name, image, instruction, response, params, tuple(paths), attempt, spans)

    def _paths(self, picks: list[int]) -> list[str]:
        return [self.source.path(pick) for pick in picks]

    def _choices(self, rng: np.random.Generator, picks: list[int]) -> tuple[list[Image.Image], Params]:
        images = [self.source.open(pick, self.task.longest_px) for pick in picks]
        return images, self.task.draw(rng, images)


@dataclass(frozen=True)
class RowStream(Stream):
    """Makes samples of stored choices instead of drawing them: published metadata, or matched pairs of photographs.

    Attributes:
        source: the rows; drawn as photographs are, without replacement until all were used.
    """

    source: RowSource

    @property
    def needs(self) -> int:
        """One row."""
        return 1

    def _paths(self, picks: list[int]) -> list[str]:
        return self.source.paths(self.source.rows[picks[0]])

    def _choices(self, rng: np.random.Generator, picks: list[int]) -> tuple[list[Image.Image], Params]:
        return self.source.recall(self.source.rows[picks[0]], rng)


class MixedDataset(Around):
    """The host's dataset with self-supervised samples after it; the host's sampler shuffles them among each other.

    Index i below `len(base)` is the base's own sample i, untouched. The rest are the tasks' samples, task after task.
    Every other attribute is the base's.

    Args:
        base: the host's dataset.
        parts: (stream, number of samples) of each task.
        speak: turns (sample, name) into what the host's dataset returns for a record with that picture and text.
        lengths: of each task's samples, by the names of the host's length attributes (`modality_lengths`: whitespace
            words, above 0 for samples with a picture). One number a task, so that all ranks agree without painting.
    """

    def __init__(
        self,
        base: Any,
        parts: list[tuple[Stream, int]],
        speak: Callable[[Sample, str], Any],
        lengths: dict[str, list[int]],
    ):
        self.base = base
        self.parts = parts
        self.speak = speak
        self.tally = Tally()
        self._lengths = lengths
        self._starts = list(accumulate((count for _, count in parts), initial=len(base)))
        self._epoch = RawValue("q", 0)  # shared memory: persistent workers see it change

    @property
    def epoch(self) -> int:
        """The epoch whose samples are made, from 0 up; set once, it holds in all worker processes."""
        return self._epoch.value

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch.value = value

    def __len__(self) -> int:
        return self._starts[-1]

    def plan(self, index: int) -> int | tuple[Stream, int]:
        """Returns the base's index, or (stream, j) for sample j of a task. Negative indices count from the end.

        Raises:
            IndexError: there is no such index.
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
        return self.speak(stream(self.epoch, j, self.tally), f"{stream.task.name}-{self.epoch}-{j}")

    def _extended(self, name: str) -> list[int]:
        result = list(getattr(self.base, name))
        for (_, count), length in zip(self.parts, self._lengths[name], strict=True):
            result += [length] * count
        return result

    @property
    def lengths(self) -> list[int]:
        """The host's `lengths`, then one constant for each task's samples."""
        return self._extended("lengths")

    @property
    def modality_lengths(self) -> list[int]:
        """The host's `modality_lengths`, then one constant above 0 for each task's samples."""
        return self._extended("modality_lengths")
