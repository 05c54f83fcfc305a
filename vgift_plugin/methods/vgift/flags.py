"""The flags, as one dataclass, and what they mean. All mistakes are reported at once."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional

from ...errors import ConfigError
from ...tasks.registry import get_task
from ...tasks.task import Task
from ..mistakes import found_in

# Flags that name a file or folder.
PATHS = (
    "ssl_image_folder",
    "ssl_config",
    "ssl_replay",
    "ssl_pairs",
    "ssl_eval_image_folder",
    "instruct_templates",
    "preference_data",
)


def _flag(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Flags:
    """What a user writes. The host's argument dataclass gets the same fields, with the same defaults and help."""

    ssl_tasks: Optional[str] = _flag(
        None,
        "self-supervised tasks to mix in, with weights: rotation,color:2,correspondence; without it nothing happens",
    )
    ssl_ratio: float = _flag(
        0.1, "samples added per base sample, 0 to 1: the paper's rho/100, 0.1 for LLaVA-1.5, 0.03 for OneVision"
    )
    ssl_seed: int = _flag(0, "seed of the self-supervised samples; independent of the trainer's --seed")
    ssl_image_folder: Optional[str] = _flag(
        None, "folder, searched recursively, whose images the samples are made of; by default the base records' images"
    )
    ssl_images: Optional[str] = _flag(None, "glob that an image's path must match, such as 'coco/train2017/*'")
    ssl_config: Optional[str] = _flag(
        None, "YAML or JSON file with the tasks' knobs, such as {rotation: {square: false}}"
    )

    ssl_replay: Optional[str] = _flag(
        None,
        "folder with the published metadata (*_metadata.json): published samples among the base records are painted "
        "instead of read; without such records the tasks draw from the metadata",
    )
    ssl_pairs: Optional[str] = _flag(
        None, "pairs of photographs from `vgift pairs` (JSON lines) for the tasks that take pairs"
    )
    ssl_eval_samples: int = _flag(
        0, "held-out samples of each task; their loss and accuracy are logged whenever the trainer evaluates"
    )
    ssl_eval_image_folder: Optional[str] = _flag(
        None,
        "folder, searched recursively, whose images the held-out samples are made of; by default one image in 20, by "
        "the hash of its name, of which no training sample is made",
    )
    ssl_eval_steps: Optional[int] = _flag(
        None,
        "evaluate after every so many steps; by default when the script's --evaluation_strategy says, and ten times in "
        "the run where that is no",
    )
    instruct_loss: str = _flag(
        "none",
        "L2T, the loss on instructions: none, full (all but BOS and the picture), no_system (human texts) or "
        "no_template (human texts without task templates: the method itself)",
    )
    instruct_templates: Optional[str] = _flag(
        None, "task templates from `vgift templates` (JSON); by default they are found in the base records"
    )
    instruct_template_share: float = _flag(
        0.001, "a sentence in at least this share of all human turns is a task template, above 0 to 1"
    )
    instruct_template_count: int = _flag(20, "and in at least this many human turns")
    instruct_loss_text: bool = _flag(False, "whether instructions of records without a picture are learned too")
    instruct_loss_weight: float = _flag(
        1.0, "weight of an instruction's token beside a response's, from 0 up; 1 is the paper's"
    )

    visual_token_drop: float = _flag(
        0.0, "share of each sample's visual tokens that training drops, 0 to below 1: ViTP's ratio, 0.75 in the paper"
    )
    visual_token_drop_prob: float = _flag(
        1.0, "chance of a sample to have visual tokens dropped: 1 in ViTP's paper, 0.25 in what its released code does"
    )
    tune_vision_tower: bool = _flag(
        False, "train the vision tower with the rest of the model, and save it with the checkpoint"
    )

    preference_data: Optional[str] = _flag(
        None,
        "pairs of responses (JSON lines, from vgift stic prefer): the run trains on them alone, with STIC's DPO loss; "
        "needs --lora_enable True",
    )
    dpo_beta: float = _flag(
        0.1, "how firmly DPO ties the model to what it was, above 0: beta in DPO's paper, lambda in STIC's"
    )
    dpo_alpha: float = _flag(
        1 / 1024, "weight of the preferred response's log-probability (summed over its tokens), from 0 up"
    )

    @classmethod
    def of(cls, source: Any) -> Flags:
        """Returns the flags held by any object or mapping that has (some of) them as attributes or keys."""
        get = source.get if isinstance(source, Mapping) else lambda name, default: getattr(source, name, default)
        return cls(**{f.name: get(f.name, f.default) for f in fields(cls)})

    @property
    def wanted(self) -> bool:
        """Whether these flags ask for any change of training."""
        inside = self.drops_tokens or self.tune_vision_tower
        return self.makes_samples or self.learns_instructions or inside or self.preference_data is not None

    @property
    def makes_samples(self) -> bool:
        """Whether these flags ask for any change of the training set."""
        return self.ssl_tasks is not None or self.ssl_replay is not None

    @property
    def learns_instructions(self) -> bool:
        """Whether these flags ask for labels of instructions."""
        return self.instruct_loss != "none"

    @property
    def drops_tokens(self) -> bool:
        """Whether any visual token is ever to be dropped."""
        return self.visual_token_drop > 0 and self.visual_token_drop_prob > 0

    def as_dict(self) -> dict[str, Any]:
        """Returns {flag: value}, JSON-able."""
        return asdict(self)

    def changed(self) -> dict[str, Any]:
        """Returns the same of the flags that are not at their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def resolve(self) -> tuple[Ask, ...]:
        """Returns the tasks asked for, knobs set, in the order written; empty without `--ssl_tasks`.

        Raises:
            ConfigError: naming every mistake in flags and config file.
        """
        mistakes = found_in(self)
        knobs = self._knobs(mistakes)
        weights = self._weights(mistakes)
        asks = []
        for name, weight in weights.items():
            try:
                asks.append(Ask(_configured(get_task(name), knobs.get(name, {}), mistakes), weight))
            except ConfigError as err:
                mistakes.append(f"--ssl_tasks: {err}")
        for name in sorted(set(knobs) - set(weights)):
            try:
                _configured(get_task(name), knobs[name], mistakes)
            except ConfigError as err:
                mistakes.append(f"--ssl_config {self.ssl_config}: {err}")
        if weights and not any(weights.values()):
            mistakes.append(f"--ssl_tasks {self.ssl_tasks}: at least one weight must be above 0")
        if mistakes:
            raise ConfigError.of(mistakes)
        return tuple(asks)

    def _weights(self, mistakes: list[str]) -> dict[str, Fraction]:
        """Reads `rotation,color:2`; the weight is 1 where none stands."""
        weights: dict[str, Fraction] = {}
        if self.ssl_tasks is None:
            return weights
        for item in self.ssl_tasks.split(","):
            name, colon, text = (part.strip() for part in item.partition(":"))
            try:
                weight = Fraction(text) if colon else Fraction(1)
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
        path = Path(self.ssl_config)
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix == ".json" else _yaml(text)
        except (OSError, ValueError) as err:
            mistakes.append(f"--ssl_config {path}: cannot be read: {err}")
            return {}
        if not isinstance(content, dict) or not all(isinstance(knobs, dict) for knobs in content.values()):
            mistakes.append(f"--ssl_config {path}: must map tasks to knobs, such as {{rotation: {{square: true}}}}")
            return {}
        return content


@dataclass(frozen=True)
class Ask:
    """One task asked for: the task with its knobs set, and its weight among the others (from 0 up)."""

    task: Task
    weight: Fraction


def _yaml(text: str):
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ValueError(" ".join(str(err).split())) from err


def _configured(kind: type[Task], values: dict, mistakes: list[str]) -> Task:
    """Returns the task with its knobs set; the default one where a mistake was found (and noted)."""
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
    """Tells whether a value from a file can stand where `default` stands: same type, or int for float, or null."""
    if default is None:
        return value is None or type(value) is int
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)


def counts(asks: tuple[Ask, ...], ratio: float, base_size: int) -> list[int]:
    """Returns how many samples each task adds: floor(ratio × base_size × its share of the weights), computed exactly.

    665,298 base records, three equal tasks and 0.1 give 22,176 each, the size of the released V-GIFT mixture.

    Raises:
        ConfigError: a task with a weight above 0 would get no sample at all.
    """
    total = sum(ask.weight for ask in asks)
    if not total:
        return [0] * len(asks)
    exact = Fraction(str(ratio)) * base_size  # the ratio as written: 0.1 is 1/10
    result = [math.floor(exact * ask.weight / total) for ask in asks]
    if exact:
        empty = [ask.task.name for ask, count in zip(asks, result, strict=True) if ask.weight and not count]
        if empty:
            raise ConfigError(
                f"--ssl_ratio {ratio:g} of {base_size:,} base records leaves no sample for {', '.join(empty)}; "
                "raise the ratio or name fewer tasks"
            )
    return result
