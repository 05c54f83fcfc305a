"""The step inside the model that drops visual tokens in training."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import nn

from ...data.seeding import generator
from ...errors import ConfigError
from ...hosts import IGNORE_INDEX
from ...hosts.base import Host
from ...hosts.model_hooks import Prepared, Step, StepInfo
from .token_drop import choose, shorten


class DropTokens(Step):
    """Drops visual tokens after the projector, in training only.

    Separators that a host puts between the rows of a picture count as visual tokens. The remaining tokens keep their
    position ids. In transformers 4.36 and 4.37, Llama and similar models look up positions in a rotary table as long as
    the (now shorter) sequence, so a longer table is requested from them.

    Args:
        host: the training code's family.
        ratio: share of a sample's visual tokens to drop, 0 < ratio < 1.
        prob: probability that tokens of a sample are dropped, in [0, 1].
    """

    def __init__(self, host: Host, ratio: float, prob: float = 1.0):
        self.host, self.ratio, self.prob = host, ratio, prob
        self._info: StepInfo | None = None
        self._left = False
        self._longest = 0
        self._hooks: list[Any] = []

    def attach(self, module: nn.Module) -> None:
        """Checks that tokens can keep their positions, and hooks the rotary tables.

        Raises:
            ConfigError: the model takes no position ids, so dropping tokens would shift the rest.
        """
        if "position_ids" not in inspect.signature(type(module).forward).parameters:
            raise ConfigError(
                f"--visual_token_drop {self.ratio:g}: {type(module).__name__} takes no position_ids, so tokens that "
                "stay cannot keep their positions; use a model with rotary positions (Llama, Mistral, Qwen), or 0"
            )
        self._left = getattr(module.config, "tokenizer_padding_side", "right") == "left"
        tower = self.host.vision_tower(module)
        seeing = set(tower.modules()) if isinstance(tower, nn.Module) else set()
        for part in module.modules():
            rotary = "rotary" in type(part).__name__.lower() and part not in seeing
            if rotary and "seq_len" in inspect.signature(part.forward).parameters:
                self._hooks.append(part.register_forward_pre_hook(self._lengthen, with_kwargs=True))

    def detach(self) -> None:
        """Removes the hooks."""
        while self._hooks:
            self._hooks.pop().remove()
        self._longest = 0

    def begin(self, info: StepInfo) -> None:
        """Stores the facts about this forward pass."""
        self._info = info

    def prepared(self, prepared: Prepared) -> Prepared:
        """Drops columns of visual tokens; see `token_drop`."""
        assert self._info is not None
        if not self._info.training or prepared.image is None:
            return prepared
        keep = choose(prepared.image, self.ratio, self.prob, self._generator)
        if bool(keep.all()):
            return prepared
        valid, positions = prepared.attention_mask.bool(), prepared.position_ids
        if positions is None:
            positions = (valid.long().cumsum(1) - 1).clamp(min=0)
        positions = positions.expand(valid.shape)  # LLaVA-NeXT's --use_pos_skipping gives one row for all samples
        self._longest = max(self._longest, int(positions.max()) + 1)
        columns, valid = shorten(keep & valid, self._left)
        rows = torch.arange(len(keep), device=columns.device)[:, None]

        def taken(values: torch.Tensor, empty: float) -> torch.Tensor:
            return values[rows, columns].masked_fill(~valid.view(*valid.shape, *[1] * (values.dim() - 2)), empty)

        return prepared._replace(
            position_ids=taken(positions, 0),
            attention_mask=valid.to(prepared.attention_mask.dtype),
            inputs_embeds=taken(prepared.inputs_embeds, 0),
            labels=None if prepared.labels is None else taken(prepared.labels, IGNORE_INDEX),
            facts=None if prepared.facts is None else taken(prepared.facts, 0),
            image=taken(prepared.image, False),
        )

    def _generator(self, row: int) -> np.random.Generator:
        info = self._info
        assert info is not None
        return generator(info.seed, "visual_token_drop", info.global_step, info.micro_step, info.rank, row)

    def _lengthen(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kwargs.get("seq_len") is not None:
            kwargs = {**kwargs, "seq_len": max(kwargs["seq_len"], self._longest)}
        return args, kwargs
