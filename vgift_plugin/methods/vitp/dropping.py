"""The step that drops visual tokens in the host: it finds them in what the host prepared, on any host and layout."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...data.seeding import generator
from ...errors import ConfigError
from ...hosts import IGNORE_INDEX
from ...hosts.model_hooks import Moment, Prepared
from .token_drop import choose, shorten


class DropTokens:
    """Drops image tokens while the model trains; a step for `Inside`, to stand last.

    Where the host has put the image tokens it says itself: instead of the labels it gets, for every token, that token's
    place in `input_ids`, and what it fills in for pictures is what no token carried. So truncation, several pictures
    and tiles of any size need no arithmetic of ours; separators that a host puts between the rows of a picture count
    as image tokens.

    Position ids are handed on with gaps. Llama and its likes in transformers 4.36 and 4.37 make their rotary table as
    long as the (now shorter) sequence and look positions up in it: their modules are asked for the longer table.

    Args:
        ratio: share of a sample's image tokens to drop, 0 < ratio < 1.
        prob: chance of a sample to have any dropped, in [0, 1].
    """

    def __init__(self, ratio: float, prob: float = 1.0):
        self.ratio = ratio
        self.prob = prob
        self._moment: Moment | None = None
        self._left = False
        self._longest = 0
        self._hooks: list[Any] = []

    def attach(self, module: nn.Module) -> None:
        """Checks that positions can be kept, and hooks the rotary tables.

        Raises:
            ConfigError: the model takes no position ids, so that what is dropped would move the rest.
        """
        if "position_ids" not in inspect.signature(type(module).forward).parameters:
            raise ConfigError(
                f"--visual_token_drop {self.ratio:g}: {type(module).__name__} takes no position_ids, so tokens that "
                "stay cannot keep their positions; use a model with rotary positions (Llama, Mistral, Qwen), or 0"
            )
        self._left = getattr(module.config, "tokenizer_padding_side", "right") == "left"
        tower = module.get_vision_tower() if hasattr(module, "get_vision_tower") else None
        seeing = set(tower.modules()) if isinstance(tower, nn.Module) else set()
        for part in module.modules():
            rotary = "rotary" in type(part).__name__.lower() and part not in seeing
            if rotary and "seq_len" in inspect.signature(part.forward).parameters:
                self._hooks.append(part.register_forward_pre_hook(self._lengthen, with_kwargs=True))

    def detach(self) -> None:
        """Takes the hooks off."""
        while self._hooks:
            self._hooks.pop().remove()
        self._longest = 0

    def begin(self, moment: Moment) -> None:
        """Notes which forward this is."""
        self._moment = moment

    def before(self, given: dict[str, Any]) -> dict[str, Any]:
        """Puts places in the stead of labels."""
        ids = given["input_ids"]
        if not self._moment.training or given.get("images") is None or ids is None:
            return given
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape).contiguous()
        mask = torch.ones_like(ids, dtype=torch.bool) if given["attention_mask"] is None else given["attention_mask"]
        return {**given, "labels": places, "attention_mask": mask}

    def after(self, prepared: Prepared, given: dict[str, Any]) -> Prepared:
        """Drops tokens, and puts the labels where their tokens went."""
        if not self._moment.training or given.get("images") is None or given["input_ids"] is None:
            return prepared
        mask, labels = given["attention_mask"], given["labels"]
        if prepared.inputs_embeds is None:  # nothing was prepared
            return prepared._replace(attention_mask=mask, labels=labels)
        valid, places = prepared.attention_mask.bool(), prepared.labels
        found = None if labels is None else self._labels(labels, places)
        keep = choose(valid & (places == IGNORE_INDEX), self.ratio, self.prob, self._generator)
        if bool(keep.all()):
            return prepared._replace(attention_mask=prepared.attention_mask if mask is not None else None, labels=found)
        positions = prepared.position_ids
        if positions is None:
            positions = (valid.long().cumsum(1) - 1).clamp(min=0)
        positions = positions.expand(valid.shape)  # LLaVA-NeXT's --use_pos_skipping gives one row for all
        self._longest = max(self._longest, int(positions.max()) + 1)
        filled = places if found is None else found
        embeds, filled, valid, positions = shorten(keep, prepared.inputs_embeds, filled, valid, positions, self._left)
        return prepared._replace(
            position_ids=positions,
            attention_mask=valid.to(prepared.attention_mask.dtype),
            inputs_embeds=embeds,
            labels=None if found is None else filled,
        )

    @staticmethod
    def _labels(labels: Tensor, places: Tensor) -> Tensor:
        """Returns the label of each prepared column's token; none for pictures and padding."""
        return labels.gather(1, places.clamp(min=0)).masked_fill(places < 0, IGNORE_INDEX)

    def _generator(self, row: int) -> Any:
        moment = self._moment
        return generator(moment.seed, "visual_token_drop", moment.global_step, moment.micro_step, moment.rank, row)

    def _lengthen(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kwargs.get("seq_len") is not None:
            kwargs = {**kwargs, "seq_len": max(kwargs["seq_len"], self._longest)}
        return args, kwargs
