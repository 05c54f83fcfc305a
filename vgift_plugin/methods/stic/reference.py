"""The reference of preference training: the same model with adapters disabled and the initial projector.

There is no second copy of the model: peft's adapters are disabled for one forward pass, and the projector, which
upstream's LoRA scripts also train, is replaced by a frozen copy.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ...data.files import write_whole
from ...errors import ConfigError
from ...hosts.base import Host
from ...hosts.trainer import is_rank_zero

PROJECTOR_FILE = "vgift_reference_projector.bin"
ADAPTER = "lora_"  # part of the names of all LoRA parameters


class Reference(TrainerCallback):
    """Keeps the state of the model when training began.

    The copy is taken when training begins and saved in the output directory; a resumed run reads that file, since the
    projector in its checkpoint has been trained.

    Attributes:
        projector: the frozen copy; None until the trainer is created, and if the projector has no weights.
    """

    def __init__(self, host: Host):
        self.host = host
        self.projector: nn.Module | None = None

    def on_init_end(self, args, state, control, model=None, **kwargs):
        """Checks which weights will be trained and allocates the copy, before anything wraps the model.

        Raises:
            ConfigError: the model has no adapters, or it trains or shards weights that cannot be restored.
        """
        if not hasattr(type(model), "disable_adapter"):
            raise ConfigError(
                "--preference_data needs LoRA (--lora_enable True, as in scripts/v1_5/finetune_lora.sh): the reference "
                "that the loss compares with is the same model with its adapters off. Without adapters it would be a "
                "second copy of the whole model."
            )
        if args.fsdp:
            raise ConfigError("--preference_data: under --fsdp the projector cannot be set back; use DeepSpeed or DDP")
        projector: Any = self._projector(model)
        own = set() if projector is None else set(map(id, projector.parameters()))
        others = [
            name
            for name, weight in model.named_parameters()
            if weight.requires_grad and ADAPTER not in name and id(weight) not in own
        ]
        if others:
            raise ConfigError(
                f"--preference_data: {len(others):,} weights besides adapters and projector would be trained, so that "
                "the model with its adapters off would not be the reference: "
                + ", ".join(others[:3])
                + (", …" if len(others) > 3 else "")
                + ". Leave out what trains them (--lora_bias, --mm_patch_merge_type with unpad, and their likes)."
            )
        if own:
            with _gathered(projector):
                self.projector = copy.deepcopy(projector).requires_grad_(False)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Takes and saves the copy, or reads it if the run is resumed.

        Raises:
            ConfigError: the run is resumed, and the file is missing or does not fit the projector.
        """
        if self.projector is None:
            return
        path = Path(args.output_dir, PROJECTOR_FILE)
        projector: Any = self._projector(model)
        if state.global_step:
            try:
                self.projector.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            except (OSError, RuntimeError) as err:
                raise ConfigError(
                    f"{path}: cannot be read: {err}\nThe run is resumed at step {state.global_step}, and this file "
                    "holds the projector it began with, which its reference needs. Put it back, or begin anew in "
                    "another --output_dir."
                ) from err
        else:
            with _gathered(projector):  # now all ranks have the weights of rank 0
                self.projector.load_state_dict(projector.state_dict())
            if is_rank_zero():
                content = io.BytesIO()
                torch.save(self.projector.state_dict(), content)
                write_whole(path, content.getvalue())
        weight = next(projector.parameters())
        self.projector.to(weight.device, weight.dtype)

    def _projector(self, model: nn.Module) -> nn.Module | None:
        return self.host.projector(self.host.model(model))

    @contextmanager
    def standing(self, model: nn.Module) -> Iterator[None]:
        """Turns the model into its own reference within the block: no gradients, no dropout, no adapters.

        Args:
            model: the model with adapters, without the wrappers of DeepSpeed or DDP.
        """
        training = [module for module in model.modules() if module.training]
        projector: Any = None if self.projector is None else self._projector(model)
        adapters: Any = model.disable_adapter
        with torch.no_grad(), adapters():
            model.eval()
            if self.projector is not None:  # replaces only the forward, so DeepSpeed's hooks stay in place
                projector.forward = self.projector.forward
            try:
                yield
            finally:
                if projector is not None:
                    del projector.forward
                for module in training:
                    module.training = True


def _gathered(module: nn.Module) -> AbstractContextManager[Any]:
    """Returns a context in which parameters sharded by ZeRO-3 are complete."""
    weights = [weight for weight in module.parameters() if hasattr(weight, "ds_id")]
    if not weights:
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(weights)
