"""The samples of one task as a function of (seed, epoch, j). Imports neither torch nor a host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...data.photos import ImageSource
from ...data.seeding import generator, permute
from ...errors import ConfigError, NoSuitableImageError, PhotoReadError, TaskError, UnsuitableImage
from ...tasks.task import Params, Sample, Task
from .rows import RowSource

MAX_REDRAWS = 10


@dataclass(frozen=True)
class Stream:
    """Creates sample j of one task: a pure function of (seed, epoch, j), the same in every process and order.

    Photographs are drawn without replacement until all are used, in a new order for each round and epoch.

    Attributes:
        task: the task.
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
        """Number of entries of the source per sample."""
        return self.task.images

    def picks(self, epoch: int, j: int, attempt: int = 0) -> list[int]:
        """Returns the indices of the photographs of sample j, all different; `attempt` counts the redraws."""
        size, need = len(self.source), self.needs
        chosen: list[int] = []
        for position in range(j * need, j * need + need):
            round_, offset = divmod(position, size)
            pick = permute(offset, size, self.seed, epoch, self.task.name, round_, attempt)
            while pick in chosen:  # only if a new round begins within a sample
                pick = (pick + 1) % size
            chosen.append(pick)
        return chosen

    def __call__(self, epoch: int, j: int, on_redraw: Callable[[str, str], None] | None = None) -> Sample:
        """Returns sample j of an epoch.

        Args:
            epoch: from 0 up.
            j: from 0 up.
            on_redraw: called with the task's name and the reason for every unsuitable draw.

        Raises:
            NoSuitableImageError: the first draw and ten redraws were all unsuitable.
            PhotoReadError: the system failed to read a photograph.
            TaskError: the task failed for another reason, which is chained.
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
                    on_redraw(self.task.name, unsuitable.reason)
            except PhotoReadError:
                raise
            except Exception as err:
                raise TaskError(
                    f"task {self.task.name} failed on {' + '.join(paths)} (ssl_seed {self.seed}, epoch {epoch}, "
                    f"sample {j}, redraw {attempt}): {type(err).__name__}: {err}"
                ) from err
        raise NoSuitableImageError(
            f"task {self.task.name} found no suitable image in {len(tried)} draws from the {len(self.source):,} of "
            f"{self.source.where} (ssl_seed {self.seed}, epoch {epoch}, sample {j}):\n  "
            + "\n  ".join(tried)
            + "\nChoose other images (--ssl_image_folder), leave the task out, or relax its knobs "
            "(--ssl_config; `vgift tasks` lists them)."
        )

    def _make(self, epoch: int, j: int, attempt: int, picks: list[int], paths: list[str]) -> Sample:
        task = self.task
        images, params = self._choices(generator(self.seed, "sample", task.name, epoch, j, attempt), picks)
        instruction, response = task.ask(params)
        image, spans = task.render(images, params), task.informative_spans(params)
        boxes = task.boxes(images, params)
        return Sample(task.name, image, instruction, response, params, tuple(paths), attempt, spans, boxes)

    def _paths(self, picks: list[int]) -> list[str]:
        return [self.source.path(pick) for pick in picks]

    def _choices(self, rng: np.random.Generator, picks: list[int]) -> tuple[list[Image.Image], Params]:
        images = [self.source.open(pick, self.task.longest_px) for pick in picks]
        return images, self.task.draw(rng, images)


@dataclass(frozen=True)
class RowStream(Stream):
    """Creates samples from stored choices: published metadata, or matched pairs of photographs.

    Attributes:
        source: the rows, drawn like photographs without replacement until all are used.
    """

    source: RowSource  # type: ignore[assignment]

    @property
    def needs(self) -> int:
        """One row."""
        return 1

    def _paths(self, picks: list[int]) -> list[str]:
        return self.source.paths(self.source.rows[picks[0]])

    def _choices(self, rng: np.random.Generator, picks: list[int]) -> tuple[list[Image.Image], Params]:
        return self.source.load(self.source.rows[picks[0]], rng)
