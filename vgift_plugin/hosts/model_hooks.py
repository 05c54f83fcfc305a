"""Hooks into one model instance while it trains. Classes are not modified; hooks are removed after training.

A host's model turns token ids and pictures into embeddings (LLaVA: `prepare_inputs_labels_for_multimodal`) and runs
the language model on them. Methods act on what comes out of either.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import ConfigError, HostMismatchError
from . import IGNORE_INDEX, token_facts
from .base import Host
from .token_facts import TokenFactsCollator, Tokens, move

logger = logging.getLogger(__name__)
ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


class Prepared(NamedTuple):
    """What the host's preparation returns, and where the tokens went.

    Attributes:
        input_ids: None where embeddings were made; else as given, and `inputs_embeds` is None.
        position_ids, attention_mask, past_key_values: (batch, length), or None.
        inputs_embeds: (batch, length, hidden): text and pictures.
        labels: (batch, length), or None.
        facts: see `token_facts`; of the labels' shape, or None.
        image: booleans (batch, length): columns of visual tokens; None where nothing was prepared.
    """

    input_ids: Any
    position_ids: Any
    attention_mask: Any
    past_key_values: Any
    inputs_embeds: Any
    labels: Any
    facts: Tensor | None = None
    image: Tensor | None = None


@dataclass(frozen=True)
class StepInfo:
    """Identifies a forward pass; seeds random choices per rank, reproducibly after a resume.

    Attributes:
        seed: the trainer's `--seed`.
        global_step: optimizer steps done before.
        micro_step: training forwards since that step began (gradient accumulation), from 0 up.
        rank: of this process among all.
        training: the model is in training mode and this is its forward; False in evaluation and in `generate`.
    """

    seed: int
    global_step: int
    micro_step: int
    rank: int
    training: bool


class Step:
    """What a method does inside the model. A subclass overrides what it needs.

    Attributes:
        required: True if training without the step would be wrong. False for a step that only reports: if it does not
            fit the model or fails, it is dropped with one warning.
    """

    required = True
    _warned = False

    def attach(self, module: nn.Module) -> None:
        """Training begins; `module` is the host's own model, without wrappers."""

    def detach(self) -> None:
        """Training ends."""

    def begin(self, info: StepInfo) -> None:
        """A forward begins."""

    def prepared(self, prepared: Prepared) -> Prepared:
        """Returns what the language model is given in the place of what the host prepared. In forwards of the model."""
        return prepared

    def forward(self, module: nn.Module, output: Any, tokens: Tokens) -> Any:
        """Returns the model's output, changed; None leaves it. Called where the batch has labels."""

    def warn_no_logits(self, module: nn.Module, what: str) -> None:
        """Warns, once, that `what` is not reported, since the model returns no logits."""
        if not self._warned:
            logger.warning("%s: not reported, %s returns no logits (a fused loss?)", what, type(module).__name__)
        self._warned = True


class ModelHooks(TrainerCallback):
    """Wraps two methods of the model's instance from the first step to the last; evaluation in between included.

    Instance attributes and no torch hooks, since peft calls its model's `forward` past them.

    Args:
        host: the training code's family, which knows its model.
        steps: in the order in which they act.
        collator: carries facts about tokens while the hooks are attached.
    """

    def __init__(self, host: Host, steps: Sequence[Step], collator: TokenFactsCollator | None = None):
        self.host, self.steps, self.collator = host, list(steps), collator
        self._where: tuple[int, int, int] = (0, 0, 0)  # seed, global step, rank
        self._micro_step = 0
        self._running = False
        self._facts: Tensor | None = None
        self._items: Any = None
        self._tokens: Tokens | None = None
        self._undo: list[Callable[[], None]] = []

    @property
    def required(self) -> bool:
        """Whether any step trains, and not only reports."""
        return any(step.required for step in self.steps)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Finds the host's model and attaches; a run that is begun again after an error is attached anew.

        Raises:
            HostMismatchError: no module of the model is the host's.
            ConfigError: one process on several GPUs, where torch copies the model for every forward.
        """
        self._where = (args.seed, state.global_step, args.process_index)
        try:
            if args.n_gpu > 1:
                raise ConfigError(
                    f"one process on {args.n_gpu} GPUs (DataParallel): start it with torchrun, accelerate or "
                    "deepspeed, one process a GPU, or show it a single one (CUDA_VISIBLE_DEVICES=0)"
                )
            self.attach(self.host.model(model), model)
        except (ConfigError, HostMismatchError) as err:
            if self.required:
                raise
            logger.warning("%s cannot report in this run: %s", self._names(self.steps), err)

    def on_step_begin(self, args, state, control, **kwargs):
        """Notes which optimizer step begins."""
        self._where = (args.seed, state.global_step, args.process_index)
        self._micro_step = 0

    def on_train_end(self, args, state, control, **kwargs):
        """Takes everything off."""
        self.detach()

    def attach(self, module: nn.Module, model: nn.Module | None = None) -> None:
        """Wraps the two methods on this instance. Callers with a training loop of their own end with `detach`.

        Args:
            module: the host's own model.
            model: the model with its wrappers, if it has any; peft 0.4's stores a reference to the original forward.
        """
        self.detach()
        around = [one for one in (model or module).modules() if one is not module]
        keepers = [one for one in around if getattr(vars(one).get("forward"), "__self__", None) is module]
        try:
            for step in self.steps:
                self._undo.append(step.detach)
                step.attach(module)
            if self.host.prepare:
                self._wrap(module, self.host.prepare, functools.partial(self._prepare, module))
            for owner in (module, *keepers):
                self._wrap(owner, "forward", functools.partial(self._forward, module))
        except BaseException:
            self.detach()
            raise
        if self.collator is not None:
            self.collator.carries = True

    def detach(self) -> None:
        """Puts both methods back, the very same; detaching what is not attached is harmless."""
        if self.collator is not None:
            self.collator.carries = False
        while self._undo:
            self._undo.pop()()
        self._running = False

    def _wrap(self, owner: nn.Module, name: str, around: Callable) -> None:
        original, mine, attached = getattr(owner, name), vars(owner).get(name), [True]

        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            return around(original, args, kwargs) if attached else original(*args, **kwargs)

        def undo():
            attached.clear()  # whoever wrapped this wrapper meanwhile still calls it
            if vars(owner).get(name) is wrapper:
                delattr(owner, name) if mine is None else setattr(owner, name, mine)

        setattr(owner, name, wrapper)
        self._undo.append(undo)

    def _names(self, steps: Sequence[Step]) -> str:
        return " and ".join(type(step).__name__ for step in steps)

    def _ask(self, step: Step, method: str, *given: Any) -> Any:
        """Calls a step; one that only reports is left out after its first error."""
        try:
            return getattr(step, method)(*given)
        except ERRORS as err:
            if step.required:
                raise
            self.steps.remove(step)
            logger.warning("%s reports nothing from here on: %s: %s", self._names([step]), type(err).__name__, err)
            return None

    def _begin(self, training: bool) -> None:
        seed, global_step, rank = self._where
        info = StepInfo(seed, global_step, self._micro_step, rank, training)
        for step in self.steps:
            step.begin(info)

    def _forward(self, module: nn.Module, original: Callable, args: tuple, kwargs: dict) -> Any:
        self._begin(module.training)
        self._facts = kwargs.pop(token_facts.KEY, None)
        labels = kwargs.get("labels")
        self._items = kwargs.get("num_items_in_batch")
        self._tokens = None if labels is None else Tokens.of(labels, self._facts, self._items)
        self._running = True
        try:
            output = original(*args, **kwargs)
            for step in list(self.steps) if self._tokens is not None else ():
                changed = self._ask(step, "forward", module, output, self._tokens)
                output = output if changed is None else changed
            return output
        finally:
            self._running, self._facts, self._tokens = False, None, None
            self._micro_step += module.training

    def _prepare(self, module: nn.Module, original: Callable, args: tuple, kwargs: dict) -> tuple:
        if not self._running:  # `generate` prepares by itself, whatever mode the model is in
            if self.required and module.training and torch.is_grad_enabled():
                raise HostMismatchError(
                    f"{self.host.prepare} was called in training, and not by {type(module).__name__}.forward where the "
                    f"plugin can see it: whatever called it cannot be combined with {self._names(self.steps)}."
                )
            self._begin(False)
            return original(*args, **kwargs)
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        ids, labels, mask = (bound.arguments[name] for name in ("input_ids", "labels", "attention_mask"))
        if ids is None:
            return original(*args, **kwargs)
        places = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
        bound.arguments["labels"] = places
        bound.arguments["attention_mask"] = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        returned = original(*bound.args, **bound.kwargs)
        try:
            found = self._located(returned, labels)
        except HostMismatchError as err:
            if self.required:
                raise
            logger.warning("%s report nothing in this run: %s", self._names(self.steps), err)
            self.detach()
            return original(*args, **kwargs)
        prepared = found
        for step in self.steps:
            prepared = step.prepared(prepared)
        if labels is not None and prepared.labels is not None:
            self._tokens = Tokens.of(prepared.labels, prepared.facts, self._items)
        if mask is None and prepared.attention_mask is found.attention_mask:
            prepared = prepared._replace(attention_mask=None)
        return tuple(getattr(prepared, name) for name in self.host.prepared)

    def _located(self, returned: Any, labels: Tensor | None) -> Prepared:
        """Reads what the host prepared: the places it moved become labels, facts and columns of visual tokens."""
        names = self.host.prepared
        if not isinstance(returned, tuple) or len(returned) != len(names):
            found = f"{len(returned)} values" if isinstance(returned, tuple) else type(returned).__name__
            raise HostMismatchError(f"{self.host.prepare}: expected ({', '.join(names)}), found {found}")
        prepared = Prepared(**{**dict.fromkeys(Prepared._fields), **dict(zip(names, returned, strict=True))})
        places = prepared.labels
        image = None if prepared.inputs_embeds is None else prepared.attention_mask.bool() & (places < 0)
        return prepared._replace(
            labels=None if labels is None else move(labels, places, IGNORE_INDEX),
            facts=None if self._facts is None else move(self._facts, places, 0),
            image=image,
        )
