"""What a model's forward returned, whatever its form: a mapping with names, or a tuple (MoE-LLaVA's always is one)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """The parts of a forward's output; each is None where there is none.

    Attributes:
        loss: as trained on.
        logits: (batch, length, vocabulary).
        router: the auxiliary loss that balances experts (MoE); included in `loss`.
    """

    loss: Tensor | None
    logits: Tensor | None
    router: Tensor | None


def read(output: Any) -> Output:
    """Returns the parts of what a forward returned. A tuple begins (loss, logits) or (loss, router's loss, logits)."""
    if not isinstance(output, tuple):
        names = ("loss", "logits", "moe_loss")
        if type(output) is dict:
            return Output(*map(output.get, names))
        return Output(*(getattr(output, name, None) for name in names))
    parts = [one for one in output if isinstance(one, Tensor)]
    place = next((k for k, one in enumerate(parts) if one.ndim == 3), len(parts))
    loss, router = [*parts[:place], None, None][:2]
    return Output(loss, parts[place] if place < len(parts) else None, router)


def with_loss(output: Any, loss: Tensor) -> Any:
    """Returns the output with another loss; a mapping is changed, a tuple is made anew."""
    if isinstance(output, tuple):
        return (loss, *output[1:])
    output.loss = loss
    return output
