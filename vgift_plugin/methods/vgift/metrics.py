"""Loss and accuracy of each task on held-out samples, whenever the host's trainer evaluates.

The trainer stays as it is: it takes `eval_dataset` (a dict, one entry a task), `compute_metrics` and
`preprocess_logits_for_metrics` from the data module, and logs `eval_<task>_loss` and `_accuracy` like any other.
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
from ...hosts import IGNORE_INDEX
from ...hosts.self_test import without_template
from ...tasks.task import Sample, Task
from .losses import SplitLoss, marked
from .mixing import Stream

logger = logging.getLogger(__name__)
EVALUATIONS = 10  # in a run whose script asks for none


class HeldOut:
    """Held-out samples of one task, as the host's dataset returns them; the same at every evaluation.

    Args:
        stream: of photographs that training does not draw from.
        speak: turns (sample, name) into what the host returns for it.
        size: how many samples.
    """

    def __init__(self, stream: Stream, speak: Callable[[Sample, str], Any], size: int):
        self.stream, self.speak, self.size = stream, speak, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.speak(self.stream(0, index), f"{self.stream.task.name}-held-out-{index}")


class Accuracy:
    """What the trainer takes as `preprocess_logits_for_metrics` (`reduce`) and `compute_metrics` (calling it).

    Teacher forcing: each token of the answer is predicted with the tokens before it given. A sample counts as right
    where every token that carries loss, end token included, is the most probable one. Logits, (batch, length,
    vocabulary), are reduced to two integers a token batch by batch, so memory does not grow with them.

    Args:
        tasks: by their numbers, from 1 up; see `mark`.
        tokenizer: the run's.
        conversation_lib: the host's `llava.conversation`, which holds the run's chat template; None where it has none.
        seen: knows what the host made of the last batch's labels.
    """

    def __init__(self, tasks: Sequence[Task], tokenizer: Any, conversation_lib: Any, seen: SplitLoss):
        self.tasks, self.tokenizer, self.seen = tasks, tokenizer, seen
        self.conversation = getattr(conversation_lib, "default_conversation", None)

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Returns (batch, length of `labels`, 2): the predicted and the true token at every place that carries loss,
        these first, then IGNORE_INDEX."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        true = self.seen.labels[:, 1:]
        predicted = logits[:, : true.shape[1]].argmax(-1)  # other ranks' longer batches may have padded the logits
        taught = true != IGNORE_INDEX
        first = (~taught).to(torch.uint8).sort(dim=1, stable=True).indices[:, : labels.shape[1]]
        pairs = torch.stack([predicted.gather(1, first), true.gather(1, first)], dim=-1)
        pairs = pairs.masked_fill(~taught.gather(1, first)[..., None], IGNORE_INDEX)
        result = pairs.new_full((*labels.shape, 2), IGNORE_INDEX)  # as wide as the labels, which all ranks padded alike
        result[:, : pairs.shape[1]] = pairs
        return result

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Returns {"accuracy": share of samples entirely right}, and for tasks whose answers can be right in part
        {"score": mean of `Task.grade`}; nothing for a data set that is not one of the tasks'."""
        number = marked(prediction.label_ids[:1, 0])[0]
        if not 0 < number <= len(self.tasks):
            return {}
        predicted, true = np.moveaxis(prediction.predictions, -1, 0)
        taught = true != IGNORE_INDEX
        metrics = {"accuracy": float(((predicted == true) | ~taught).all(axis=1).mean())}
        task = self.tasks[number - 1]
        if type(task).grade is not Task.grade:
            rows = zip(predicted, true, taught, strict=True)
            grades = [task.grade(self._text(said[kept]), self._text(wanted[kept])) for said, wanted, kept in rows]
            metrics["score"] = float(np.mean(grades))
        return metrics

    def _text(self, tokens: np.ndarray) -> str:
        text = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        return without_template(text, self.conversation, self.tokenizer)


class EvaluationCallback(TrainerCallback):
    """Lets the trainer evaluate where its script does not, and keeps its random numbers as if it had not.

    Every evaluation draws from torch's global generator (its data loader does), and the order of the base records
    after it would be another one.

    Args:
        steps: evaluate after every so many optimizer steps; None leaves it to the script, and where that says "no" it
            happens `EVALUATIONS` times in the run.
    """

    def __init__(self, steps: int | None):
        self.steps = steps
        self._every: int | None = None
        self._random: torch.Tensor | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Finds out when to evaluate, and says it."""
        if args.evaluation_strategy != "no":
            if self.steps is not None:
                logger.info("--ssl_eval_steps: the training script's own --evaluation_strategy wins")
            return
        self._every = self.steps or math.ceil(state.max_steps / EVALUATIONS)
        logger.info("held-out samples are evaluated after every %d steps and at the end", self._every)

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for an evaluation where one is due."""
        if self._every and (state.global_step % self._every == 0 or state.global_step >= state.max_steps):
            control.should_evaluate = True
        self._keep(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Keeps the random numbers of a run that evaluates after each epoch."""
        self._keep(control)

    def on_evaluate(self, args, state, control, **kwargs):
        """Puts the random numbers back, after each data set."""
        if self._random is not None:
            torch.set_rng_state(self._random)

    def _keep(self, control) -> None:
        if control.should_evaluate:
            self._random = torch.get_rng_state()


def evaluated(data_module: dict, held_out: dict[str, HeldOut], accuracy: Accuracy, steps: int | None) -> dict:
    """Returns the data module with the held-out samples, beside a data set for evaluation that it may have ("base").

    Raises:
        ConfigError: the host has metrics of its own.
    """
    if own := [name for name in ("compute_metrics", "preprocess_logits_for_metrics") if data_module.get(name)]:
        raise ConfigError(f"--ssl_eval_samples: this host's data module has {' and '.join(own)} of its own")
    base = data_module.get("eval_dataset")
    base = base if isinstance(base, dict) else {} if base is None else {"base": base}
    if twice := sorted(set(base) & set(held_out)):
        raise ConfigError(f"--ssl_eval_samples: this host's data module evaluates on {', '.join(twice)} already")
    return {
        **data_module,
        "eval_dataset": {**base, **held_out},
        "compute_metrics": accuracy,
        "preprocess_logits_for_metrics": accuracy.reduce,
        "callbacks": [*data_module.get("callbacks", ()), EvaluationCallback(steps)],
    }


def require_suitable(held_out: Collection[HeldOut]) -> None:
    """Makes every held-out sample once, each on one of the ranks: no evaluation stops a run that has trained for hours.

    Raises:
        NoSuitableImageError, TaskError: a sample cannot be made.
    """
    import torch.distributed as dist

    several = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    for one in held_out:
        name = f"held-out {one.stream.task.name}"
        for index in tqdm(range(rank, len(one), world), desc=name, unit="", disable=rank > 0, leave=False):
            one.stream(0, index)
