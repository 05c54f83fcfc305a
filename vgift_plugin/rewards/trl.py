"""Reward functions and a data set for TRL's `GRPOTrainer`.

from vgift_plugin.rewards.trl import dataset, reward_funcs

trainer = GRPOTrainer(
    model,
    reward_funcs=reward_funcs(),
    train_dataset=dataset({"ssl_tasks": "rotation"}, "playground/data", n=1000),
    args=GRPOConfig(remove_unused_columns=False, ...),
)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.records import read_records
from ..errors import ConfigError
from ..methods.vgift.flags import VgiftFlags
from ..methods.vgift.stream import Stream
from ..methods.vgift.streams import streams
from ..tasks.task import Task
from .answer import FORMS, REQUESTS
from .score import KINDS, reward

if TYPE_CHECKING:
    from datasets import Dataset


def reward_funcs(
    kinds: Sequence[str] = ("score",), *, form: str = "plain", tasks: Sequence[Task] = ()
) -> list[Callable[..., list[float | None]]]:
    """Returns a reward function for each kind, to be given to `GRPOTrainer(reward_funcs=...)`.

    A function returns one float for each completion, and None for rows without a task (TRL leaves those out), so the
    samples can be mixed with other data. TRL logs its mean as `rewards/vgift_score/mean`; to log `exact` and `form`
    without rewarding them, ask for all three and give `GRPOConfig(reward_weights=[1.0, 0.0, 0.0])`.

    Args:
        kinds: fields of `Reward`: score, exact, form, gain, centered.
        form: see `reward`.
        tasks: tasks whose knobs are not the default ones, for `gain` and `centered`.

    Raises:
        ValueError: there is no such kind or form.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or form not in FORMS:
        raise ValueError(f"kinds must be of {', '.join(KINDS)} and form one of {', '.join(FORMS)}; got {kinds}, {form}")
    known = {task.name: task for task in tasks}

    def function(kind: str) -> Callable[..., list[float | None]]:
        def rewards(
            prompts: Any = None,
            completions: Sequence[Any] = (),
            task: Sequence[str | None] = (),
            params: Sequence[str | Mapping | None] = (),
            **columns: Any,
        ) -> list[float | None]:
            if not len(completions) == len(task) == len(params):
                raise ValueError("the data set needs the columns task and params, with remove_unused_columns=False")
            rows = zip(completions, task, params, strict=True)
            return [
                None
                if name is None or drawn is None
                else getattr(reward(known.get(name, name), text(completion), _parsed(drawn), form=form), kind)
                for completion, name, drawn in rows
            ]

        rewards.__name__ = rewards.__qualname__ = f"vgift_{kind}"
        return rewards

    return [function(kind) for kind in kinds]


def text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of a completion: of the last chat message, where it is a list of messages."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or () if part.get("type", "text") == "text")


def _parsed(params: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return json.loads(params) if isinstance(params, str) else params


def row(stream: Stream, epoch: int, j: int, form: str = "plain") -> dict[str, Any]:
    """Returns sample j of an epoch as a row: {"prompt": chat messages of text, "image", "task", "params": JSON}."""
    sample = stream(epoch, j)
    content = f"{sample.instruction} {REQUESTS[form]}".strip()
    messages = [{"role": "user", "content": content}]
    return {"prompt": messages, "image": sample.image, "task": sample.task, "params": json.dumps(sample.params)}


@dataclass(frozen=True)
class Rows:
    """Turns row numbers into rows: `n` samples of each stream in an epoch, epoch after epoch, from `epoch` on."""

    streams: tuple[Stream, ...]
    n: int
    epoch: int
    form: str

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list]:
        """Returns the columns of the rows whose numbers are in `batch["i"]`."""
        found = []
        for i in batch["i"]:
            later, place = divmod(i, self.n * len(self.streams))
            which, j = divmod(place, self.n)
            found.append(row(self.streams[which], self.epoch + later, j, self.form))
        return {name: [one[name] for one in found] for name in found[0]} if found else {}


def dataset(
    flags: Any,
    image_folder: str,
    *,
    n: int,
    data_path: str | None = None,
    epoch: int = 0,
    epochs: int = 1,
    form: str = "plain",
) -> Dataset:
    """Returns a `datasets.Dataset` whose rows are made when they are read; see `row` for its columns.

    Row i is a function of the flags, epoch and i: the samples that training would see. Rows come task by task, so let
    the trainer shuffle them, as it does by default. It pickles to worker processes.

    Args:
        flags: an object or a mapping with the flags, such as {"ssl_tasks": "rotation,color", "ssl_seed": 7}. The
            number of samples is the same for each task: weights and ratio do not count.
        image_folder: images, searched recursively; with `data_path`, the folder its paths are relative to.
        n: samples of each task in an epoch.
        data_path: LLaVA records whose images are used, or None for all images in the folder.
        epoch: the first epoch.
        epochs: number of epochs, one after the other; each has new samples.
        form: see `reward`; a sentence that asks for the form is added to the prompt.

    Raises:
        ConfigError: `datasets` is missing, or a flag or path is wrong.
    """
    try:
        import datasets
    except ImportError as err:
        raise ConfigError("the data set for TRL needs the datasets library: pip install 'vgift-plugin[rl]'") from err
    if n < 1 or epochs < 1 or epoch < 0 or form not in FORMS:
        raise ConfigError(f"n {n}, epochs {epochs}, epoch {epoch}, form {form}: wrong value")
    given = VgiftFlags.of(flags)
    if given.ssl_tasks is None:
        given.require_samples()
        raise ConfigError("published samples have words of their own and are no rows here; give --ssl_tasks")
    asked = given.tasks()
    if several := [spec.task.name for spec in asked if spec.task.several_images]:
        raise ConfigError(f"{several[0]}.two_images: a row has one image; set it to false")
    made = streams(given, asked, read_records(data_path), image_folder, None)

    return datasets.Dataset.from_dict({"i": list(range(n * len(made) * epochs))}).with_transform(
        Rows(tuple(made), n, epoch, form)
    )
