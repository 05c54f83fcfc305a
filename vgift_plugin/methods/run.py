"""The state of one training run, which the plans of the methods change."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..hosts.base import Host
from ..hosts.encoder import Encoder
from ..hosts.model_hooks import ModelHooks, Step
from ..hosts.token_facts import TokenFactsCollator


@dataclass
class Run:
    """One training run, after the host created its data module and before its trainer exists. Plans change it.

    Attributes:
        host: the training code's family.
        module: the training module.
        tokenizer: the run's tokenizer.
        data_args: the host's data arguments.
        data_module: keyword arguments of the host's trainer; the host's own object until something changes.
        flags: {flag: value} of all methods' flags that differ from their defaults.
        all_flags: {flag: value} of all methods' flags.
        notes: facts that are found in training, for `vgift_mix.json`.
        replaced: {name: object} of globals of `module` to replace until the trainer is created.
        base: the host's own training set.
        encoder: encodes samples and records as the host's items.
        train_encoder: the encoder for training items; a method may replace it by one with other labels.
    """

    host: Host
    module: ModuleType
    tokenizer: Any
    data_args: Any
    data_module: dict[str, Any]
    flags: dict[str, Any] = field(default_factory=dict)
    all_flags: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)
    _hooks: ModelHooks | None = None

    def __post_init__(self):
        self.base = self.dataset
        self.encoder = Encoder(self.host, self.base)
        self.train_encoder: Any = self.encoder

    @property
    def dataset(self) -> Any:
        """The training set, as wrapped so far; `base` is the host's own."""
        return self.data_module["train_dataset"]

    def change(self, **parts: Any) -> None:
        """Replaces some of the trainer's arguments."""
        self.data_module = {**self.data_module, **parts}

    def add_callbacks(self, *callbacks: Any) -> None:
        """Adds callbacks to the trainer, after existing ones."""
        self.change(callbacks=[*self.data_module.get("callbacks", ()), *callbacks])

    def add_step(self, step: Step) -> None:
        """Adds a step that runs inside the model in training and receives facts about tokens; see `ModelHooks`."""
        if self._hooks is None:
            collator = TokenFactsCollator(self.data_module["data_collator"])
            self._hooks = ModelHooks(self.host, [], collator)
            self.change(data_collator=collator)
            self.add_callbacks(self._hooks)
        self._hooks.steps.append(step)
