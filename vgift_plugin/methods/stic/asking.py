"""What both jobs of `vgift stic` share: options of checkpoint and sampling, and text for the terminal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Optional

from ... import __version__
from ...data.arguments import option
from ...data.jobs import Ranks
from ...data.photos import fingerprint
from ...errors import ConfigError
from ...hosts.checkpoint import Checkpoint, device_of
from ...hosts.loading import Found, find

NAMED = 20  # names on the terminal; all of them are in the report


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Options of both jobs: model and sampling.

    An interrupted run resumes from `OUTPUT.parts`, next to the file `output`.

    Raises:
        ConfigError: numbers are out of range (all are listed), or the folder does not exist.
    """

    model_path: str = option(help="a LLaVA: folder, or name on the Hub", metavar="CKPT")
    model_base: Optional[str] = option(None, "what a LoRA adapter or a projector was trained on", metavar="BASE")
    image_folder: str = option(help="images; with --data_path what its paths are relative to", metavar="DIR")
    output: str = option(help="FILE.parts and FILE.report.json appear beside it", short="-o", metavar="FILE")
    n: int = option(5000, "how many, or all where there are fewer", short="-n", metavar="N")
    temperature: float = option(0.2, "of sampling; 0 takes the likeliest token", metavar="T")
    max_new_tokens: int = option(1024, "where descriptions are cut off, and then not used", metavar="N")
    seed: int = option(0, "of choices, prompts and tokens", metavar="N")
    batch_size: int = option(8, "descriptions at once", metavar="N")
    device: Optional[str] = option(
        None, "cuda, cpu or cuda:1; default: this rank's GPU where there is one", metavar="D"
    )
    conv_mode: Optional[str] = option(
        None,
        "the chat template the model was trained with; default: as LLaVA's evaluation chooses, else v1",
        metavar="NAME",
    )

    def __post_init__(self):
        mistakes = [
            f"{flag} {value}: at least {least}"
            for flag, value, least in (
                ("-n", self.n, 1),
                ("--temperature", self.temperature, 0),
                ("--max_new_tokens", self.max_new_tokens, 1),
                ("--batch_size", self.batch_size, 1),
            )
            if value < least
        ]
        if mistakes:
            raise ConfigError.of(mistakes)
        if not Path(self.image_folder).is_dir():
            raise ConfigError(f"--image_folder {self.image_folder}: there is no such folder")

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings that replies depend on besides question and picture."""
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens, "seed": self.seed}

    def find(self) -> tuple[Found, str, Callable[[], Checkpoint]]:
        """Returns the checkpoint's description, the device of this rank, and a cached loader of the checkpoint.

        This is fast, so mistakes are found before folders and records are read.

        Raises:
            ConfigError: the checkpoint or the device is not usable.
        """
        found, device = find(self.model_path, self.model_base, self.conv_mode), rank_device(self.device)
        return found, device, functools.cache(lambda: Checkpoint.of(found, device))

    def settings(self, found: Found, device: str, worked_on: dict[str, str], prompts: Iterable[str]) -> dict[str, Any]:
        """Returns everything that the replies depend on, as settings for `data.jobs`.

        Args:
            found: see `find`.
            device: see `find`.
            worked_on: {name: fingerprint} of the inputs.
            prompts: all prompts used.
        """
        return {
            "--model_path": self.model_path,
            "--model_base": self.model_base,
            "--conv_mode": found.template,
            "weights": found.weights,
            **worked_on,
            "n": self.n,
            **self.sampling,
            "batch size": self.batch_size,
            "device": device.partition(":")[0],
            "prompts": fingerprint(prompts),
            "vgift-plugin": __version__,
        }


def listed(what: str, reasons: dict[str, str]) -> str:
    """Returns {name: reason} as text: counts by reason, then the first names; an empty string for no reasons."""
    if not reasons:
        return ""
    counts: dict[str, int] = {}
    for reason in reasons.values():
        counts[reason] = counts.get(reason, 0) + 1
    lines = [f"{what}: " + ", ".join(f"{reason} {count:,}" for reason, count in counts.items())]
    lines += [f"  {name}: {reason}" for name, reason in islice(reasons.items(), NAMED)]
    lines += [f"  … and {len(reasons) - NAMED:,} more"] if len(reasons) > NAMED else []
    return "\n" + "\n".join(lines)


def rank_device(wanted: str | None) -> str:
    """Returns the device of this rank: the requested one, else its own GPU, else the CPU; see `device_of`."""
    device, ranks = device_of(wanted), Ranks.here()
    return device_of(f"cuda:{ranks.local_rank}") if device == "cuda" and ranks.local_world > 1 else device
