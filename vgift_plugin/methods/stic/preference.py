"""Preference training (STIC's stage 1): pairs instead of records, the host's own trainer with another loss."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from transformers import Trainer, TrainerCallback

from ... import __version__
from ...data.photos import fingerprint
from ...errors import ConfigError, HostMismatchError
from ...hosts import ranks as agreement
from ...hosts.model_hooks import Inside
from ...hosts.self_test import template_names
from ...hosts.view import sweep
from ..vgift.flags import Flags
from .preference_data import (
    MASKED,
    PairCollator,
    PreferenceDataset,
    measured,
    require_images,
    self_test,
)
from .preference_loss import PreferenceLoss
from .preference_receipt import Receipt
from .preferences import Preferences, read, usable
from .reference import Reference

logger = logging.getLogger(__name__)
TRAINER = "LLaVATrainer"


def trainer_of(module: ModuleType) -> type[Trainer]:
    """Returns the host's own trainer class, the one that its `train()` will make.

    Raises:
        HostMismatchError: the module has none, or `train()` does not look it up there.
    """
    trainer, train = getattr(module, TRAINER, None), getattr(module, "train", None)
    if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
        problem = f"expected a subclass of transformers.Trainer, found {trainer!r}"
    elif getattr(train, "__globals__", None) is vars(module) and TRAINER not in train.__code__.co_names:
        problem = "expected train() to look it up as a global, it does not"
    else:
        return trainer
    raise HostMismatchError(
        f"--preference_data needs the trainer of {getattr(module, '__file__', None) or module.__name__}, whose loss it "
        f"replaces:\n  - {TRAINER}: {problem}\nNothing was changed."
    )


def check(module: ModuleType, flags: Flags) -> None:
    """Checks, before a model is loaded, what can be checked by then.

    Raises:
        ConfigError: the preference file cannot be read.
        HostMismatchError: the host's trainer cannot be reached.
    """
    if flags.preference_data is not None:
        trainer_of(module)
        read(flags.preference_data)


def preferring(module: ModuleType, data_module: dict, flags: Flags, tokenizer: Any, data_args: Any) -> dict:
    """Returns the host's data module with the pairs of `--preference_data` as its training set.

    The module's `LLaVATrainer` is, until `train()` has made one, a subclass of the host's own with another loss.

    Args:
        module: the host's training module.
        data_module: what its `make_supervised_data_module` returned; it is not changed.
        flags: the run's flags.
        tokenizer: the run's tokenizer.
        data_args: the run's data arguments.

    Raises:
        ConfigError: no vision tower; a file that cannot be read, is of another template, or has nothing to train on;
            pictures that are not there; ranks that differ.
        SelfTestError: the host does not train on the responses.
        HostMismatchError: the host's trainer cannot be reached.
    """
    if not getattr(data_args, "is_multimodal", False):
        raise ConfigError("--preference_data: the pairs are about pictures, and this run has no --vision_tower")
    own, conversation_lib = trainer_of(module), getattr(module, "conversation_lib", None)
    preferences = read(flags.preference_data)
    _require_template(preferences, flags, conversation_lib, data_args)
    agreement.compare(facts(flags, preferences))
    rows = usable(preferences.rows)
    require_images(rows, data_args.image_folder)
    sweep()
    base = data_module["train_dataset"]
    rows, extents, masked = measured(base, rows)
    left_out = Counter(row["degenerate"] for row in preferences.rows if row["degenerate"]) + masked
    counted = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    if not rows:
        cure = (
            "The template does not fit the tokenizer; choose another --version."
            if masked[MASKED]
            else "Write more pairs with `vgift stic prefer`."
        )
        raise ConfigError(f"--preference_data {flags.preference_data}: no pair is left to train on ({counted}). {cure}")
    dataset = PreferenceDataset(base, rows, extents)
    self_test(dataset, tokenizer, getattr(conversation_lib, "default_conversation", None))
    logger.info(
        "training on %s pairs of %s (beta %g, alpha %g); they passed their self-test. Left out: %s. The records of "
        "--data_path are not trained on.",
        f"{len(rows):,}",
        flags.preference_data,
        flags.dpo_beta,
        flags.dpo_alpha,
        counted or "none",
    )
    reference = Reference()
    loss = PreferenceLoss(flags.dpo_beta, flags.dpo_alpha, reference)
    receipt = {
        "vgift_plugin": __version__,
        "flags": flags.as_dict(),
        "header": preferences.header,
        "pairs": len(rows),
        "fingerprint": fingerprint(row["id"] for row in rows),
        "left_out": dict(left_out),
    }
    setattr(module, TRAINER, trainer_with(own, loss))
    callbacks = [GiveBack(module, own), reference, Receipt(receipt, extents), loss, Inside([loss])]
    return {
        **data_module,
        "train_dataset": dataset,
        "data_collator": PairCollator(data_module["data_collator"]),
        "callbacks": [*data_module.get("callbacks", ()), *callbacks],
    }


def facts(flags: Flags, preferences: Preferences) -> dict[str, str]:
    """Returns all that decides about the training, {what: value}."""
    return {
        "--preference_data": fingerprint(json.dumps(row, sort_keys=True) for row in preferences.rows),
        "--dpo_beta": str(flags.dpo_beta),
        "--dpo_alpha": str(flags.dpo_alpha),
        "vgift-plugin": __version__,
    }


def trainer_with(own: type[Trainer], loss: PreferenceLoss) -> type[Trainer]:
    """Returns a subclass of a trainer class that trains with this loss; evaluation and all else are the class's own."""

    class PreferenceTrainer(own):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            if not model.training:
                return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            value, outputs = loss(self.model, model, inputs)
            return (value, outputs) if return_outputs else value

    return PreferenceTrainer


def _require_template(preferences: Preferences, flags: Flags, conversation_lib: Any, data_args: Any) -> None:
    """Compares the template of the file with the run's."""
    names = template_names(conversation_lib) or [str(getattr(data_args, "conv_version", "?"))]
    if preferences.template not in names:
        raise ConfigError(
            f"--preference_data {flags.preference_data} was written with the chat template {preferences.template!r}, "
            f"and this run trains with {names[0]!r} (--version): the responses would be trained in other surroundings "
            f"than they were written in. Train with --version {preferences.template}, or write them anew."
        )


@dataclass
class GiveBack(TrainerCallback):
    """Puts the host's own trainer class back as soon as the trainer is made."""

    module: ModuleType
    own: type[Trainer]

    def on_init_end(self, args, state, control, **kwargs):
        """Puts it back."""
        setattr(self.module, TRAINER, self.own)
