"""Training of the vision tower, which LLaVA freezes by `requires_grad_(False)` and by a forward under `no_grad`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ...errors import ConfigError, HostMismatchError
from ...hosts.base import Host

logger = logging.getLogger(__name__)
FLAG = "--tune_vision_tower"


class TuneTower(TrainerCallback):
    """Unfreezes the tower before the optimizer exists, and lets gradients through the forward of this instance.

    Adapters in the tower are removed: if the base's config has LLaVA's switch, its tower is loaded before peft looks
    for layers, and weights under an adapter would be saved under names that LLaVA's loader ignores.

    Parameters after the layer that LLaVA reads get no gradient (with `mm_vision_select_layer` -2 those of the last
    block and the last norm). They stay frozen, as data-parallel training requires, and are saved unchanged.
    """

    def __init__(self, host: Host):
        self.host = host
        self._undo: list[Callable[[], None]] = []
        self._tower: nn.Module | None = None

    def on_init_end(self, args, state, control, model=None, **kwargs):
        """Unfreezes the tower, in full fine-tuning and with adapters.

        Raises:
            ConfigError: upstream would not save the tower in this kind of run.
            HostMismatchError: the model has no tower in LLaVA's place.
        """
        own = self.host.model(model)
        tower = self.host.vision_tower(own)
        if not isinstance(tower, nn.Module) or not isinstance(getattr(tower, "vision_tower", None), nn.Module):
            raise HostMismatchError(
                f"{FLAG}: expected {type(own).__name__}.get_vision_tower().vision_tower, found {tower!r}; nothing was "
                "changed. A training code with a flag of its own for this needs no other."
            )
        held = set(map(id, own.parameters()))
        mistakes = [f"{FLAG}: {why}" for why in self.host.tower_not_saved(args)]
        if not all(id(parameter) in held for parameter in tower.parameters()):
            mistakes.append(f"{FLAG}: with --fsdp the tower is kept out of the model; use DeepSpeed or torchrun")
        if mistakes:
            raise ConfigError.of(mistakes)
        adapters = _take_adapters(tower)
        if tower.dtype == torch.float16 and not (args.deepspeed and args.fp16):
            tower.to(torch.float32)  # upstream uses float16 unless in bf16; only DeepSpeed keeps a float32 copy
        unreached, words = beyond(tower)
        for parameter in tower.parameters():
            parameter.requires_grad_(id(parameter) not in unreached)
        setattr(own.config, self.host.loads_tower, True)
        self._tower = tower
        for name in ("forward", "forward_feature"):
            if hasattr(getattr(type(tower), name, None), "__wrapped__"):
                self._let_through(tower, name)
        trained = sum(parameter.numel() for parameter in tower.parameters() if id(parameter) not in unreached)
        kind = str(tower.dtype).removeprefix("torch.")
        if adapters:
            logger.info("it trains without the %d adapters that peft had put into the vision tower", adapters)
        logger.info("the vision tower trains too: %s parameters in %s; %s", f"{trained:,}", kind, words)

    def on_train_end(self, args, state, control, **kwargs):
        """Restores the tower's methods, and unfreezes all its parameters, since upstream saves only unfrozen ones."""
        while self._undo:
            self._undo.pop()()
        assert self._tower is not None
        self._tower.requires_grad_(True)

    def _let_through(self, tower: nn.Module, name: str) -> None:
        free = getattr(type(tower), name).__wrapped__

        @functools.wraps(free)
        def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            features = free(self, *args, **kwargs)
            some = features[0] if isinstance(features, list) else features
            if self.training and torch.is_grad_enabled() and not some.requires_grad:
                raise HostMismatchError(
                    f"{FLAG}: no gradient comes through {type(self).__name__}.{name}; this tower's code is not as "
                    "LLaVA's. Leave the flag out."
                )
            return features

        setattr(tower, name, MethodType(method, tower))
        self._undo.append(lambda: delattr(tower, name))


def _take_adapters(tower: nn.Module) -> int:
    """Removes LoRA's adapters from the tower; returns how many."""
    parts = [(owner, name, part) for owner in tower.modules() for name, part in owner.named_children()]
    found: list[tuple[nn.Module, str, Any]] = [one for one in parts if hasattr(one[2], "lora_A")]
    for owner, name, part in found:
        plain = getattr(part, "base_layer", None)
        if plain is None:  # up to peft 0.5 an adapter is itself the layer
            plain = nn.Linear(part.in_features, part.out_features, device="meta")
            plain.weight, plain.bias = part.weight, part.bias
        setattr(owner, name, plain)
    return len(found)


def stays_frozen(host: Host, model: nn.Module) -> bool:
    """Returns whether the tower is not trained: no parameter requires a gradient, or its forward is `no_grad`."""
    tower = host.vision_tower(model)
    shut = tower is not None and "forward" not in vars(tower) and hasattr(type(tower).forward, "__wrapped__")
    return shut or not any(one.requires_grad for name, one in model.named_parameters() if "vision_tower" in name)


def beyond(tower: nn.Module) -> tuple[set[int], str]:
    """Returns the ids of the parameters after the layer whose output the host reads, and a sentence that says which."""
    vision: Any = getattr(tower.vision_tower, "vision_model", None)
    blocks = getattr(getattr(vision, "encoder", None), "layers", None)
    layer = getattr(tower, "select_layer", None)
    if blocks is None or layer is None or getattr(tower, "select_feature", "") not in ("patch", "cls_patch"):
        return set(), "all of it"
    used = layer % (len(blocks) + 1)  # hidden states: the embeddings and one per block
    parts = [*blocks[used:], vision.post_layernorm]
    words = f"LLaVA reads layer {layer}, so the last norm"
    if used < len(blocks):
        first = used + 1
        words += f" and block{'s' * (first < len(blocks))} {first}" + f" to {len(blocks)}" * (first < len(blocks))
    words += f" of {len(blocks)} get{'s' * (used == len(blocks))} no gradient and stay as they were"
    return {id(parameter) for part in parts for parameter in part.parameters()}, words
