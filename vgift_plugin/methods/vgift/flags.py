"""The flags of V-GIFT, and what they select: the tasks, their knobs, and the number of samples of each."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Optional

from ...data.arguments import option
from ...data.photo import MAX_PIXELS
from ...data.strict import read_settings
from ...errors import ConfigError
from ...tasks.registry import get_task, presets, task_names
from ...tasks.task import Task
from ..base import MethodFlags
from .weights import factors

REPEAT, SHUFFLED = CONTROLS = ("repeat", "shuffled")
WEIGHT = re.compile(r"[^eE]{0,12}")  # Fraction("1e9999999") takes all memory


@dataclass(frozen=True)
class VgiftFlags(MethodFlags):
    """Flags for mixing in self-supervised samples."""

    PATHS: ClassVar[tuple[str, ...]] = (
        "ssl_image_folder",
        "ssl_config",
        "ssl_weights_from",
        "ssl_replay",
        "ssl_pairs",
        "ssl_eval_image_folder",
    )
    REPORTING: ClassVar[tuple[str, ...]] = ("ssl_eval_samples", "ssl_eval_steps")

    ssl_tasks: Optional[str] = option(
        None,
        "self-supervised tasks to mix in, with weights: rotation,color:2,correspondence; without it nothing happens",
    )
    ssl_ratio: float = option(
        0.1, "samples added per base sample, 0 to 1: the paper's rho/100, 0.1 for LLaVA-1.5, 0.03 for OneVision"
    )
    ssl_seed: int = option(0, "seed of the self-supervised samples; independent of the trainer's --seed")
    ssl_image_folder: Optional[str] = option(
        None, "folder, searched recursively, whose images the samples are made of; by default the base records' images"
    )
    ssl_max_pixels: int = option(
        MAX_PIXELS,
        "images of more pixels are passed over; JPEG files are decoded at a reduced size where that is enough",
    )
    ssl_config: Optional[str] = option(
        None,
        "YAML or JSON file with the tasks' knobs, such as {rotation: {square: false}}; or a paper's: "
        + ", ".join(presets()),
    )
    ssl_weights_from: Optional[str] = option(
        None,
        "JSON of `vgift probe` on the checkpoint to train: tasks that it solves (90 % right) or that are at chance get "
        "a quarter of their weight",
    )
    ssl_control: Optional[str] = option(
        None,
        "a control run of the same size: repeat trains on repeated base records instead of samples, shuffled gives "
        "each sample another one's picture",
    )
    ssl_replay: Optional[str] = option(
        None,
        "folder with the published metadata (*_metadata.json): published samples among the base records are painted "
        "instead of read; without such records the tasks draw from the metadata",
    )
    ssl_pairs: Optional[str] = option(
        None, "pairs of photographs from `vgift pairs` (JSON lines) for the tasks that take pairs"
    )
    ssl_eval_samples: int = option(
        0, "held-out samples of each task; their loss and accuracy are logged whenever the trainer evaluates"
    )
    ssl_eval_image_folder: Optional[str] = option(
        None,
        "folder, searched recursively, whose images the held-out samples are made of; by default one image in 20, by "
        "the hash of its name, of which no training sample is made",
    )
    ssl_eval_steps: Optional[int] = option(
        None,
        "evaluate after every so many steps; by default when the script's --evaluation_strategy says, and ten times in "
        "the run where that is no",
    )

    @classmethod
    def absolute(cls, name: str, value: str) -> str:
        """Returns an absolute path; the name of a preset stays as it is."""
        return value if name == "ssl_config" and value in presets() else super().absolute(name, value)

    @property
    def makes_samples(self) -> bool:
        """Whether any samples are requested."""
        return self.ssl_tasks is not None or self.ssl_replay is not None

    def require_samples(self) -> None:
        """Raises ConfigError if no samples are requested."""
        if not self.makes_samples:
            raise ConfigError(f"--ssl_tasks is missing; known tasks: {', '.join(task_names())}")

    def tasks(self) -> tuple[TaskSpec, ...]:
        """Returns the requested tasks with their knobs set, in the given order; empty without `--ssl_tasks`.

        Raises:
            ConfigError: lists all mistakes in the flags and in the config file.
        """
        specs, mistakes = self._resolved()
        if mistakes:
            raise ConfigError.of(mistakes)
        return specs

    def mistakes(self) -> list[str]:
        """See `MethodFlags.mistakes`."""
        return list(self._resolved()[1])

    def _resolved(self) -> tuple[tuple[TaskSpec, ...], list[str]]:
        return _resolved(self)

    def _wrong_values(self) -> list[str]:
        mistakes = []
        if not (math.isfinite(self.ssl_ratio) and 0 <= self.ssl_ratio <= 1):
            percent = f"; {self.ssl_ratio:g} percent is {self.ssl_ratio / 100:g}" if 1 < self.ssl_ratio <= 100 else ""
            mistakes.append(
                f"--ssl_ratio {self.ssl_ratio:g}: must be 0 to 1, the samples added per base sample{percent}"
            )
        for name in ("ssl_image_folder", "ssl_replay", "ssl_eval_image_folder"):
            if (path := getattr(self, name)) is not None and not Path(path).is_dir():
                mistakes.append(f"--{name} {path}: there is no such folder")
        if self.ssl_pairs is not None and not Path(self.ssl_pairs).is_file():
            mistakes.append(f"--ssl_pairs {self.ssl_pairs}: there is no such file; `vgift pairs` writes one")
        if self.ssl_pairs is not None and self.ssl_tasks is None:
            mistakes.append("--ssl_pairs needs --ssl_tasks with a task that takes pairs")
        if self.ssl_weights_from is not None and self.ssl_tasks is None:
            mistakes.append("--ssl_weights_from needs --ssl_tasks")
        if self.ssl_control is not None:
            if self.ssl_control not in CONTROLS:
                mistakes.append(f"--ssl_control {self.ssl_control}: must be {' or '.join(CONTROLS)}")
            if self.ssl_tasks is None or not self.ssl_ratio:
                mistakes.append("--ssl_control needs --ssl_tasks and an --ssl_ratio above 0, whose control it is")
            if self.ssl_replay is not None:
                mistakes.append("--ssl_control goes without --ssl_replay, whose samples are base records")
        if self.ssl_max_pixels < 1:
            mistakes.append(f"--ssl_max_pixels {self.ssl_max_pixels}: must be 1 or more")
        if self.ssl_eval_samples < 0:
            mistakes.append(f"--ssl_eval_samples {self.ssl_eval_samples}: must be 0 or more")
        if self.ssl_eval_samples and self.ssl_tasks is None:
            mistakes.append("--ssl_eval_samples needs --ssl_tasks, whose samples it holds out")
        if self.ssl_eval_steps is not None and self.ssl_eval_steps < 1:
            mistakes.append(f"--ssl_eval_steps {self.ssl_eval_steps}: must be 1 or more")
        if not self.ssl_eval_samples:
            given = [name for name in ("ssl_eval_image_folder", "ssl_eval_steps") if getattr(self, name) is not None]
            mistakes += [f"--{name} needs --ssl_eval_samples" for name in given]
        return mistakes

    def _weights(self, mistakes: list[str]) -> dict[str, Fraction]:
        """Returns {task: weight} from text such as `rotation,color:2`; the default weight is 1."""
        weights: dict[str, Fraction] = {}
        for item in [] if self.ssl_tasks is None else self.ssl_tasks.split(","):
            name, colon, text = (part.strip() for part in item.partition(":"))
            try:
                weight = Fraction(text if WEIGHT.fullmatch(text) else "?") if colon else Fraction(1)
            except (ValueError, ZeroDivisionError):
                weight = Fraction(-1)
            if not name:
                mistakes.append(f"--ssl_tasks {self.ssl_tasks!r}: a task's name is missing; write rotation,color:2")
            elif name in weights:
                mistakes.append(f"--ssl_tasks {self.ssl_tasks}: {name} stands twice")
            elif weight < 0:
                mistakes.append(f"--ssl_tasks: the weight of {name} must be a number from 0 up, not {text!r}")
            else:
                weights[name] = weight
        return weights

    def _knobs(self, mistakes: list[str]) -> dict[str, dict]:
        if self.ssl_config is None:
            return {}
        path = presets().get(self.ssl_config, Path(self.ssl_config))
        try:
            content = read_settings(path)
        except (OSError, ValueError) as err:
            mistakes.append(f"--ssl_config {path}: cannot be read: {err}")
            return {}
        if not isinstance(content, dict) or not all(isinstance(knobs, dict) for knobs in content.values()):
            mistakes.append(f"--ssl_config {path}: must map tasks to knobs, such as {{rotation: {{square: true}}}}")
            return {}
        return content


@dataclass(frozen=True)
class TaskSpec:
    """A requested task.

    Attributes:
        task: with its knobs set.
        weight: relative to the others, from 0 up.
        reason: why `--ssl_weights_from` changed the weight or did not.
    """

    task: Task
    weight: Fraction
    reason: str = ""


@lru_cache(maxsize=8)  # the config file is read once
def _resolved(flags: VgiftFlags) -> tuple[tuple[TaskSpec, ...], list[str]]:
    mistakes = flags._wrong_values()
    knobs = flags._knobs(mistakes)
    weights = flags._weights(mistakes)
    specs = []
    for name, weight in weights.items():
        try:
            specs.append(TaskSpec(_configured(get_task(name), knobs.get(name, {}), mistakes), weight))
        except ConfigError as err:
            mistakes.append(f"--ssl_tasks: {err}")
    for name in sorted(set(map(str, knobs)) - set(weights)):
        try:
            _configured(get_task(name), knobs.get(name, {}), mistakes)
        except ConfigError as err:
            mistakes.append(f"--ssl_config {flags.ssl_config}: {err}")
    if flags.ssl_weights_from is not None:
        try:
            found = factors(flags.ssl_weights_from, {spec.task.name: spec.task for spec in specs})
            specs = [
                TaskSpec(spec.task, spec.weight * found[spec.task.name][0], found[spec.task.name][1]) for spec in specs
            ]
        except ConfigError as err:
            mistakes.append(str(err))
    if weights and not any(weights.values()):
        mistakes.append(f"--ssl_tasks {flags.ssl_tasks}: at least one weight must be above 0")
    return tuple(specs), mistakes


def _configured(kind: type[Task], values: dict, mistakes: list[str]) -> Task:
    """Returns the task with its knobs set; the default task if there are mistakes, which are added to the list."""
    known = kind.knobs()
    before = len(mistakes)
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            mistakes.append(f"--ssl_config: {kind.name} has no knob {name!r}; {hint}")
        elif not _fits(value, known[name][0]):
            mistakes.append(f"--ssl_config: {kind.name}.{name} must be like {known[name][0]!r}, not {value!r}")
    if len(mistakes) == before:
        try:
            return kind(**values)
        except ValueError as err:
            mistakes.append(f"--ssl_config: {kind.name}.{err}")
    return kind()


def _fits(value: Any, default: Any) -> bool:
    """Returns whether a value has the type of `default`; int is allowed for float, and null or int for None."""
    if default is None:
        return value is None or type(value) is int
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)


def counts(specs: tuple[TaskSpec, ...], ratio: float, base_size: int) -> list[int]:
    """Returns the number of samples of each task: floor(ratio × base_size × its share of the weights), exactly.

    665,298 base records, three equal tasks and 0.1 give 22,176 each, the size of the released V-GIFT mixture.

    Raises:
        ConfigError: a task with a weight above 0 would get no samples.
    """
    total = sum(spec.weight for spec in specs)
    if not total:
        return [0] * len(specs)
    exact = Fraction(str(ratio)) * base_size  # the exact decimal ratio: 0.1 is 1/10
    result = [math.floor(exact * spec.weight / total) for spec in specs]
    if exact:
        empty = [spec.task.name for spec, count in zip(specs, result, strict=True) if spec.weight and not count]
        if empty:
            raise ConfigError(
                f"--ssl_ratio {ratio:g} of {base_size:,} base records leaves no sample for {', '.join(empty)}; "
                "raise the ratio or name fewer tasks"
            )
    return result
