"""STIC's stage 1 in a training run: pairs instead of records, and the host's own trainer with another loss."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass

from transformers import Trainer

from ... import __version__
from ...data.photos import fingerprint
from ...errors import ConfigError
from ...hosts.base import ChatTemplate
from ..run import Run
from .dataset import MASKED, PairCollator, PreferenceDataset, measured, require_images, self_test
from .flags import STICFlags
from .loss import PreferenceLoss
from .preferences import Preferences, read, usable
from .receipt import Receipt
from .reference import Reference

logger = logging.getLogger(__name__)


def plan(flags: STICFlags, run: Run) -> PreferencePlan:
    """Returns the plan for training on the pairs of `--preference_data`.

    Raises:
        ConfigError: the file cannot be read, or was written with another chat template.
    """
    assert flags.preference_data is not None
    preferences = read(flags.preference_data)
    template = run.host.template(run.module, run.data_args, run.tokenizer)
    _require_template(preferences, flags, template)
    facts = {"--preference_data": fingerprint(json.dumps(row, sort_keys=True) for row in preferences.rows)}
    return PreferencePlan(flags, preferences, template, facts)


@dataclass
class PreferencePlan:
    """See `methods.base.Plan`."""

    flags: STICFlags
    preferences: Preferences
    template: ChatTemplate
    facts: dict[str, str]

    def apply(self, run: Run) -> None:
        """Replaces the records by the pairs and, until the trainer is created, its class by one with another loss.

        Raises:
            ConfigError: the file has no pair to train on, or pictures are missing.
            SelfTestError: the host does not train on the responses.
        """
        flags = self.flags
        rows = usable(self.preferences.rows)
        require_images(rows, run.host.image_folder(run.data_args))
        rows, extents, masked = measured(run.host, run.base, rows)
        left_out = Counter(row["degenerate"] for row in self.preferences.rows if row["degenerate"]) + masked
        listed = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        if not rows:
            cure = (
                "The template does not fit the tokenizer; choose another --version."
                if masked[MASKED]
                else "Write more pairs with `vgift stic prefer`."
            )
            raise ConfigError(
                f"--preference_data {flags.preference_data}: no pair is left to train on ({listed}). {cure}"
            )
        dataset = PreferenceDataset(run.host, run.base, rows, extents)
        self_test(dataset, run.tokenizer, self.template)
        logger.info(
            "training on %s pairs of %s (beta %g, alpha %g); they passed their self-test. Left out: %s. The records of "
            "--data_path are not trained on.",
            f"{len(rows):,}",
            flags.preference_data,
            flags.dpo_beta,
            flags.dpo_alpha,
            listed or "none",
        )
        reference = Reference(run.host)
        loss = PreferenceLoss(flags.dpo_beta, flags.dpo_alpha, reference)
        receipt = {
            "vgift_plugin": __version__,
            "flags": run.all_flags,
            "header": self.preferences.header,
            "pairs": len(rows),
            "fingerprint": fingerprint(row["id"] for row in rows),
            "left_out": dict(left_out),
        }
        run.replaced[run.host.trainer_name] = trainer_with(run.host.trainer(run.module), loss)
        run.add_callbacks(reference, Receipt(run.host, receipt, extents), loss)
        run.add_step(loss)
        run.change(train_dataset=dataset, data_collator=PairCollator(run.data_module["data_collator"]))


def trainer_with(own: type[Trainer], loss: PreferenceLoss) -> type[Trainer]:
    """Returns a subclass of a trainer class that trains with this loss; evaluation and the rest are unchanged."""

    class PreferenceTrainer(own):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            if not model.training:
                return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            value, outputs = loss(self.model, model, inputs)
            return (value, outputs) if return_outputs else value

    return PreferenceTrainer


def _require_template(preferences: Preferences, flags: STICFlags, template: ChatTemplate) -> None:
    """Raises ConfigError if the template of the file is not the run's."""
    if preferences.template not in template.names:
        raise ConfigError(
            f"--preference_data {flags.preference_data} was written with the chat template {preferences.template!r}, "
            f"and this run trains with {template.names[0]!r} (--version): the responses would be trained in another "
            f"context than they were written in. Train with --version {preferences.template}, or write them anew."
        )
