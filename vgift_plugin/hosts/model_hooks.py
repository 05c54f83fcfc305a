"""What reaches inside the model while it trains: attached to the one instance, never to a class, and taken off again.

The host's `prepare_inputs_labels_for_multimodal` turns token ids and pictures into embeddings; what comes before and
after it, and around the model's forward, is where a method may change training. LLaVA's own code stays as it is.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import TrainerCallback

from ..errors import ConfigError, HostMismatchError

logger = logging.getLogger(__name__)
PREPARE = "prepare_inputs_labels_for_multimodal"


class Prepared(NamedTuple):
    """What the host's `prepare_inputs_labels_for_multimodal` returns, in its order.

    `inputs_embeds` is None, and the rest as given, where there was nothing to prepare (no pictures, or one token of a
    generation); else `input_ids` is None and `inputs_embeds` (batch, length, hidden) holds text and pictures.
    """

    input_ids: Any
    position_ids: Any
    attention_mask: Any
    past_key_values: Any
    inputs_embeds: Any
    labels: Any


@dataclass(frozen=True)
class Moment:
    """Which forward of the run this is: enough to name a random choice, on this rank and no other, also after a resume.

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


class Inside(TrainerCallback):
    """Lets steps act inside the model, from the beginning of training to its end; evaluation in between included.

    A step is any object with some of these methods:

    - `attach(module)` and `detach()`: training begins and ends; `module` is the host's own model, without wrappers.
    - `begin(moment)`: a forward begins; `Moment` says which and whether it trains.
    - `before(given) -> given`: the arguments of the host's preparation by name (input_ids, position_ids,
      attention_mask, past_key_values, labels, images, and what the host has more), to be returned or replaced.
    - `after(prepared, given) -> prepared`: what came out; `given` is what this step's `before` got.
    - `pre_forward(module, args, kwargs) -> (args, kwargs)` and `forward(module, args, kwargs, output) -> output` around
      the model's forward; None leaves all as it is.

    The first step is the outermost: its `before` comes first and its `after` last.

    Instance attributes and no torch hooks, since peft calls its model's `forward` past them.

    Args:
        steps: in that order.
        required: whether training without them would be another training; if not, a model they do not fit is told of
            in a warning.
    """

    def __init__(self, steps: Sequence[Any], required: bool = True):
        self.steps = list(steps)
        self.required = required
        self._where: tuple[int, int, int] = (0, 0, 0)  # seed, global step, rank
        self._micro_step = 0
        self._running = False
        self._undo: list[Callable[[], None]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Finds the host's model and attaches; a run that is begun again after an error is attached anew.

        Raises:
            HostMismatchError: no module of the model prepares pictures as LLaVA does.
            ConfigError: one process on several GPUs, where torch copies the model for every forward.
        """
        self._where = (args.seed, state.global_step, args.process_index)
        try:
            if args.n_gpu > 1:
                raise ConfigError(
                    f"one process on {args.n_gpu} GPUs (DataParallel): start it with torchrun, accelerate or "
                    "deepspeed, one process a GPU, or show it a single one (CUDA_VISIBLE_DEVICES=0)"
                )
            self.attach(find_host(model), model)
        except (ConfigError, HostMismatchError) as err:
            if self.required:
                raise
            logger.warning("%s cannot act in this run: %s", " and ".join(type(s).__name__ for s in self.steps), err)

    def on_step_begin(self, args, state, control, **kwargs):
        """Notes which optimizer step begins."""
        self._where = (args.seed, state.global_step, args.process_index)
        self._micro_step = 0

    def on_train_end(self, args, state, control, **kwargs):
        """Takes everything off."""
        self.detach()

    def attach(self, module: nn.Module, model: nn.Module | None = None) -> None:
        """Wraps the two methods on this instance. Callers with their own training loop end with `detach`.

        Args:
            module: the host's own model.
            model: that within its wrappers, if it has any; peft 0.4's keeps the forward it found when it was made.
        """
        self.detach()
        around = [one for one in (model or module).modules() if one is not module]
        keepers = [one for one in around if getattr(vars(one).get("forward"), "__self__", None) is module]
        try:
            for step in self.steps:
                if hasattr(step, "attach"):
                    self._undo.append(getattr(step, "detach", lambda: None))
                    step.attach(module)
            self._wrap(module, PREPARE, functools.partial(self._prepare, module))
            for owner in (module, *keepers):
                self._wrap(owner, "forward", functools.partial(self._forward, module))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Puts both methods back, the very same; detaching what is not attached is harmless."""
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

    def _begin(self, training: bool) -> None:
        seed, global_step, rank = self._where
        moment = Moment(seed, global_step, self._micro_step, rank, training)
        for step in self._with("begin"):
            step.begin(moment)

    def _with(self, method: str) -> list[Any]:
        return [step for step in self.steps if hasattr(step, method)]

    def _forward(self, module: nn.Module, original: Callable, args: tuple, kwargs: dict) -> Any:
        self._begin(module.training)
        self._running = True
        try:
            for step in self._with("pre_forward"):
                args, kwargs = step.pre_forward(module, args, kwargs) or (args, kwargs)
            output = original(*args, **kwargs)
            for step in reversed(self._with("forward")):
                changed = step.forward(module, args, kwargs, output)
                output = output if changed is None else changed
            return output
        finally:
            self._running = False
            self._micro_step += module.training

    def _prepare(self, module: nn.Module, original: Callable, args: tuple, kwargs: dict) -> tuple:
        if not self._running:  # `generate` prepares by itself, whatever mode the model is in
            if self.required and module.training and torch.is_grad_enabled():
                raise HostMismatchError(
                    f"{PREPARE} was called in training, and not by {type(module).__name__}.forward where the plugin "
                    "can see it: whatever called it cannot be combined with --visual_token_drop and its likes."
                )
            self._begin(False)
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        given, seen = dict(bound.arguments), {}
        for step in self.steps:
            seen[id(step)] = given
            given = step.before(dict(given)) if hasattr(step, "before") else given
        bound.arguments.update(given)
        returned = original(*bound.args, **bound.kwargs)
        if not isinstance(returned, tuple) or len(returned) != len(Prepared._fields):
            found = f"{len(returned)} values" if isinstance(returned, tuple) else type(returned).__name__
            raise HostMismatchError(f"{PREPARE}: expected ({', '.join(Prepared._fields)}), found {found}")
        prepared = Prepared(*returned)
        for step in reversed(self._with("after")):
            prepared = step.after(prepared, seen[id(step)])
        return tuple(prepared)


def with_step(data_module: dict, step: Any, required: bool = True) -> dict:
    """Returns the data module with one more step, the innermost so far, in its one `Inside`; see there."""
    callbacks = list(data_module.get("callbacks", ()))
    inside = next((callback for callback in callbacks if isinstance(callback, Inside)), None)
    if inside is None:
        callbacks.append(inside := Inside([], required=False))
    inside.steps.append(step)
    inside.required |= required
    return {**data_module, "callbacks": callbacks}


def find_host(model: nn.Module) -> nn.Module:
    """Returns the module of the host's own class inside whatever wraps it: peft, DDP, DeepSpeed, FSDP.

    Raises:
        HostMismatchError: there is none.
    """
    for module in model.modules():
        if hasattr(type(module), PREPARE):  # the class, since peft's wrapper passes every attribute on
            return module
    raise HostMismatchError(
        f"{type(model).__name__}: expected a model with {PREPARE}, as LLaVA has, and found none inside it. "
        "Leave out the flags that act inside the model (--visual_token_drop and its likes); nothing was changed."
    )
