"""What is wrong with the flags, one sentence a mistake: each names the flag, its value and the cure."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

INSTRUCT_LOSSES = ("none", "full", "no_system", "no_template")  # the rows of L2T's ablation


def found_in(flags: Any) -> list[str]:
    """Returns all that can be told from the flags (`config.Flags`) and from what files there are."""
    kinds = (_samples, _evaluation, _instructions, _tokens, _preferences)
    return [mistake for kind in kinds for mistake in kind(flags)]


def _samples(flags: Any) -> list[str]:
    """Which samples."""
    mistakes = []
    if not (math.isfinite(flags.ssl_ratio) and 0 <= flags.ssl_ratio <= 1):
        percent = f"; {flags.ssl_ratio:g} percent is {flags.ssl_ratio / 100:g}" if 1 < flags.ssl_ratio <= 100 else ""
        mistakes.append(f"--ssl_ratio {flags.ssl_ratio:g}: must be 0 to 1, the samples added per base sample{percent}")
    if flags.ssl_image_folder is not None and not Path(flags.ssl_image_folder).is_dir():
        mistakes.append(f"--ssl_image_folder {flags.ssl_image_folder}: there is no such folder")
    if flags.ssl_replay is not None and not Path(flags.ssl_replay).is_dir():
        mistakes.append(f"--ssl_replay {flags.ssl_replay}: there is no such folder")
    if flags.ssl_pairs is not None and not Path(flags.ssl_pairs).is_file():
        mistakes.append(f"--ssl_pairs {flags.ssl_pairs}: there is no such file; `vgift pairs` writes one")
    if flags.ssl_pairs is not None and flags.ssl_tasks is None:
        mistakes.append("--ssl_pairs needs --ssl_tasks with a task that takes pairs")
    return mistakes


def _evaluation(flags: Any) -> list[str]:
    """What is held out."""
    mistakes = []
    if flags.ssl_eval_samples < 0:
        mistakes.append(f"--ssl_eval_samples {flags.ssl_eval_samples}: must be 0 or more")
    if flags.ssl_eval_samples and flags.ssl_tasks is None:
        mistakes.append("--ssl_eval_samples needs --ssl_tasks, whose samples it holds out")
    if flags.ssl_eval_image_folder is not None and not Path(flags.ssl_eval_image_folder).is_dir():
        mistakes.append(f"--ssl_eval_image_folder {flags.ssl_eval_image_folder}: there is no such folder")
    if flags.ssl_eval_steps is not None and flags.ssl_eval_steps < 1:
        mistakes.append(f"--ssl_eval_steps {flags.ssl_eval_steps}: must be 1 or more")
    if not flags.ssl_eval_samples:
        given = {"ssl_eval_image_folder": flags.ssl_eval_image_folder, "ssl_eval_steps": flags.ssl_eval_steps}
        mistakes += [f"--{name} needs --ssl_eval_samples" for name, value in given.items() if value is not None]
    return mistakes


def _instructions(flags: Any) -> list[str]:
    """L2T."""
    mistakes = []
    if flags.instruct_loss not in INSTRUCT_LOSSES:
        near = difflib.get_close_matches(str(flags.instruct_loss), INSTRUCT_LOSSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(INSTRUCT_LOSSES)}"
        mistakes.append(f"--instruct_loss {flags.instruct_loss}: {hint}")
    if flags.instruct_templates is not None and not Path(flags.instruct_templates).is_file():
        mistakes.append(
            f"--instruct_templates {flags.instruct_templates}: there is no such file; `vgift templates` writes one"
        )
    if flags.instruct_templates is not None and flags.instruct_loss != "no_template":
        mistakes.append(f"--instruct_templates needs --instruct_loss no_template, not {flags.instruct_loss}")
    if not 0 < flags.instruct_template_share <= 1:
        mistakes.append(
            f"--instruct_template_share {flags.instruct_template_share:g}: must be above 0 and at most 1, a share "
            "of all human turns"
        )
    for name in sorted({"instruct_template_share", "instruct_template_count"} & flags.changed().keys()):
        if flags.instruct_loss in ("full", "no_system"):
            mistakes.append(f"--{name} needs --instruct_loss no_template, not {flags.instruct_loss}")
        elif flags.instruct_loss == "no_template" and flags.instruct_templates is not None:
            mistakes.append(f"--{name} does nothing with --instruct_templates, whose sentences are taken as they are")
    if flags.instruct_template_count < 1:
        mistakes.append(f"--instruct_template_count {flags.instruct_template_count}: must be at least 1")
    if flags.instruct_loss_text and flags.instruct_loss == "none":
        mistakes.append("--instruct_loss_text True needs an --instruct_loss other than none")
    if not (math.isfinite(flags.instruct_loss_weight) and flags.instruct_loss_weight >= 0):
        mistakes.append(f"--instruct_loss_weight {flags.instruct_loss_weight:g}: must be a finite number, 0 or more")
    if flags.instruct_loss_weight != 1 and flags.instruct_loss == "none":
        mistakes.append("--instruct_loss_weight needs an --instruct_loss other than none")
    return mistakes


def _tokens(flags: Any) -> list[str]:
    """ViTP."""
    mistakes = []
    if not 0 <= flags.visual_token_drop < 1:
        percent = f"; {flags.visual_token_drop:g} percent is {flags.visual_token_drop / 100:g}"
        mistakes.append(
            f"--visual_token_drop {flags.visual_token_drop:g}: must be 0 or more and below 1, the share of visual "
            "tokens to drop" + (percent if 1 < flags.visual_token_drop < 100 else "")
        )
    if not 0 <= flags.visual_token_drop_prob <= 1:
        mistakes.append(
            f"--visual_token_drop_prob {flags.visual_token_drop_prob:g}: must be 0 to 1, the chance of a sample"
        )
    if flags.visual_token_drop == 0 and "visual_token_drop_prob" in flags.changed():
        mistakes.append("--visual_token_drop_prob needs --visual_token_drop, the share to drop; 0.75 in the paper")
    return mistakes


def _preferences(flags: Any) -> list[str]:
    """STIC, stage 1."""
    mistakes, own = [], ("preference_data", "dpo_beta", "dpo_alpha")
    if not (math.isfinite(flags.dpo_beta) and flags.dpo_beta > 0):
        mistakes.append(f"--dpo_beta {flags.dpo_beta:g}: must be above 0; STIC and DPO take 0.1")
    if not (math.isfinite(flags.dpo_alpha) and flags.dpo_alpha >= 0):
        mistakes.append(f"--dpo_alpha {flags.dpo_alpha:g}: must be 0 or more; STIC takes 1/1024")
    changed = flags.changed()
    if flags.preference_data is None:
        return mistakes + [f"--{name} needs --preference_data" for name in own[1:] if name in changed]
    if not Path(flags.preference_data).is_file():
        mistakes.append(
            f"--preference_data {flags.preference_data}: there is no such file; `vgift stic prefer` writes one"
        )
    if others := [f"--{name}" for name in changed if name not in own]:
        mistakes.append(
            f"--preference_data goes without {', '.join(others)}: it trains on pairs alone, with a loss on their "
            "two responses; mix samples in when you fine-tune afterwards"
        )
    return mistakes
