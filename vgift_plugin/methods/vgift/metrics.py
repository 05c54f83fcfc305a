"""Loss and accuracy of each task on held-out samples, computed whenever the host's trainer evaluates.

The trainer is not changed: it takes `eval_dataset` (a dict with one entry per task), `compute_metrics` and
`preprocess_logits_for_metrics` from the data module, and logs `eval_<task>_loss` and `_accuracy` as usual.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from ...errors import ConfigError
from ...hosts import IGNORE_INDEX, outputs
from ...hosts.base import ChatTemplate
from ...hosts.token_facts import with_facts
from ...hosts.token_text import TokenText
from ...hosts.trainer import evaluation_strategy
from ...tasks.task import Sample, Task
from ..run import Run
from .losses import TaskLosses
from .stream import Stream

logger = logging.getLogger(__name__)
EVALUATIONS = 10  # in a run whose script requests none


class HeldOut:
    """Held-out samples of one task as the host's items, the same in every evaluation.

    Args:
        stream: a stream of photographs that training does not use.
        encode: returns the host's item, given (sample, name).
        size: number of samples.
    """

    def __init__(self, stream: Stream, encode: Callable[[Sample, str], Any], size: int):
        self.stream, self.encode, self.size = stream, encode, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.size:
            raise IndexError(index)
        item = self.encode(self.stream(0, index), f"{self.stream.task.name}-held-out-{index}")
        return with_facts(item, sample=index + 1)


class Accuracy:
    """The trainer's `preprocess_logits_for_metrics` (method `reduce`) and `compute_metrics` (calling the object).

    With teacher forcing, each token of the answer is predicted from the true tokens before it. A sample is correct if
    every token with loss, including the end token, is the most probable one. The logits of each batch, (batch, length,
    vocabulary), are reduced to four integers per token to save memory.

    Args:
        tasks: the tasks in the order of their numbers, which start at 1.
        tokenizer: the run's tokenizer.
        template: the run's chat template.
        losses: holds the tokens of the last batch.
    """

    def __init__(self, tasks: Sequence[Task], tokenizer: Any, template: ChatTemplate, losses: TaskLosses):
        self.tasks, self.tokenizer, self.template, self.losses = tasks, tokenizer, template, losses
        self._texts = TokenText(tokenizer)

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Returns (batch, length of `labels`, 4): predicted token, true token, number of the task and of the sample at
        every place that carries loss, these first, then IGNORE_INDEX."""
        logits = outputs.read(logits).logits if isinstance(logits, tuple) else logits
        tokens = self.losses.tokens
        result = labels.new_full((*labels.shape, 4), IGNORE_INDEX)  # all ranks pad labels to the same width
        if tokens is None or tokens.task is None or tokens.sample is None:
            return result
        true, task, sample = (part[:, 1:] for part in (tokens.labels, tokens.task, tokens.sample))
        predicted = logits[:, : true.shape[1]].argmax(-1)  # logits may be padded to other ranks' longer batches
        supervised = true != IGNORE_INDEX
        first = (~supervised).to(torch.uint8).sort(dim=1, stable=True).indices[:, : labels.shape[1]]
        found = torch.stack([values.gather(1, first) for values in (predicted, true, task, sample)], dim=-1)
        result[:, : found.shape[1]] = found.masked_fill(~supervised.gather(1, first)[..., None], IGNORE_INDEX)
        return result

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Returns {"accuracy": share of entirely correct samples}, and "score", the mean of `Task.grade`, for tasks
        with partial credit; an empty dict for data sets other than the tasks'."""
        predicted, true, task, sample = np.moveaxis(prediction.predictions, -1, 0)
        supervised = true != IGNORE_INDEX
        number = int(task[supervised][0]) if supervised.any() else 0
        if not 0 < number <= len(self.tasks):
            return {}
        answers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for row, own in enumerate(supervised):
            for one in np.unique(sample[row, own]):  # several if the host flattens batches
                places = own & (sample[row] == one)
                answers.setdefault(int(one), (predicted[row, places], true[row, places]))  # ranks may repeat samples
        metrics = {"accuracy": float(np.mean([(said == truth).all() for said, truth in answers.values()]))}
        kind = self.tasks[number - 1]
        if type(kind).grade is not Task.grade:
            metrics["score"] = float(np.mean([self._grade(kind, said, truth) for said, truth in answers.values()]))
        return metrics

    def _grade(self, task: Task, predicted: np.ndarray, true: np.ndarray) -> float:
        """Returns the grade of the true answer with the characters of wrongly predicted tokens replaced by U+FFFD.

        Thus tokens are compared by position. The text of the predicted tokens could be correct by accident: a model
        that repeats the current token predicts the answer, shifted by one.
        """
        told = ~np.isin(true, self.tokenizer.all_special_ids)
        text, spans = self._texts.read(true[told].tolist())
        reply = list(text)
        for (start, end), right in zip(spans, (predicted == true)[told].tolist(), strict=True):
            if not right:
                reply[start:end] = (character if character.isspace() else "\ufffd" for character in text[start:end])
        return task.grade(self.template.without_markers("".join(reply)), self.template.without_markers(text))


class EvaluationCallback(TrainerCallback):
    """Lets the trainer evaluate if its script does not, and restores the random state after each evaluation.

    The data loader of an evaluation draws from torch's global generator, which would change the order of the base
    records afterwards.

    Args:
        steps: evaluate every `steps` optimizer steps; None for the script's own setting, or `EVALUATIONS` times in the
            run if that is "no".
    """

    def __init__(self, steps: int | None):
        self.steps = steps
        self._every: int | None = None
        self._random: torch.Tensor | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Determines and logs when to evaluate."""
        if evaluation_strategy(args) != "no":
            if self.steps is not None:
                logger.info("--ssl_eval_steps: the training script's own --evaluation_strategy wins")
            return
        self._every = self.steps or math.ceil(state.max_steps / EVALUATIONS)
        logger.info("held-out samples are evaluated after every %d steps and at the end", self._every)

    def on_step_end(self, args, state, control, **kwargs):
        """Requests an evaluation if one is due."""
        if self._every and (state.global_step % self._every == 0 or state.global_step >= state.max_steps):
            control.should_evaluate = True
        self._keep(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Stores the random state of a run that evaluates after each epoch."""
        self._keep(control)

    def on_evaluate(self, args, state, control, **kwargs):
        """Restores the random state after each data set."""
        if self._random is not None:
            torch.set_rng_state(self._random)

    def _keep(self, control) -> None:
        if control.should_evaluate:
            self._random = torch.get_rng_state()


def evaluated(run: Run, held_out: dict[str, HeldOut], accuracy: Accuracy, steps: int | None) -> None:
    """Adds the held-out samples, in addition to the host's own evaluation set ("base"), if any.

    Raises:
        ConfigError: the host has its own metrics, or evaluation sets of the same names.
    """
    has = run.data_module
    if own := [name for name in ("compute_metrics", "preprocess_logits_for_metrics") if has.get(name)]:
        raise ConfigError(f"--ssl_eval_samples: this host's data module has {' and '.join(own)} of its own")
    base = has.get("eval_dataset")
    base = base if isinstance(base, dict) else {} if base is None else {"base": base}
    if twice := sorted(set(base) & set(held_out)):
        raise ConfigError(f"--ssl_eval_samples: this host's data module evaluates on {', '.join(twice)} already")
    run.change(
        eval_dataset={**base, **held_out},
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=accuracy.reduce,
    )
    run.add_callbacks(EvaluationCallback(steps))


def require_suitable(held_out: Collection[HeldOut]) -> None:
    """Creates every held-out sample once, each on one of the ranks, so that errors appear before training.

    Raises:
        NoSuitableImageError, TaskError: a sample cannot be created.
    """
    import torch.distributed as dist

    several = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    for one in held_out:
        name = f"held-out {one.stream.task.name}"
        for index in tqdm(range(rank, len(one), world), desc=name, unit="", disable=rank > 0, leave=False):
            one.stream(0, index)
