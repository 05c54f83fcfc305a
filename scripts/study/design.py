"""The design of a study, read from a YAML file; see README.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vgift_plugin.data.strict import read_settings
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.settings import Settings, all_fields

KEYS = {"about", "seeds", "arms", "prepare", "train", "evaluate", "compare", "mean"}
NAME = re.compile(r"[\w+.-]{1,40}")


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        about: what is measured, one paragraph.
        seeds: of the runs; every arm is run with each.
        arms: {name: {flag of the plugin: value}}; an arm without flags is a plain run. In the file, an arm whose
            `ssl_ratio` is a list stands for one arm each, named NAME-10 at 0.1.
        prepare: a shell command that is run once, before the first run, or "".
        train: a shell command that trains one run.
        evaluate: shell commands, each of which writes {measure: number} as JSON.
        compare: names of the arms that all others are compared with; of an arm with several ratios, each other arm is
            compared with the one of its own ratio.
        mean: the measures whose mean is reported as `mean`; none for no such row.
    """

    about: str
    seeds: list[int]
    arms: dict[str, dict[str, Any]]
    prepare: str
    train: str
    evaluate: list[str]
    compare: list[str]
    mean: list[str]

    @classmethod
    def read(cls, path: str) -> Study:
        """Returns the study of a file.

        Raises:
            ConfigError: lists all mistakes.
        """
        try:
            content = read_settings(path)
        except (OSError, ValueError) as err:
            raise ConfigError(f"{path}: cannot be read: {err}") from err
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: must map {', '.join(sorted(KEYS))} to values")
        study = {"about": "", "prepare": "", "compare": [], "mean": [], **content}
        if isinstance(study.get("arms"), dict):
            study["arms"] = swept(study["arms"])
        mistakes = [f"there is no key {name!r}" for name in sorted(map(str, set(content) - KEYS))]
        mistakes += [f"{name} is missing" for name in sorted(KEYS - set(study))]
        if not mistakes:
            mistakes = cls._mistakes(study)
        if mistakes:
            raise ConfigError("\n  - ".join([f"{path}:", *mistakes]))
        return cls(**study)

    @staticmethod
    def _mistakes(study: dict[str, Any]) -> list[str]:
        mistakes = []
        seeds, arms = study["seeds"], study["arms"]
        if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < 2:
            mistakes.append("seeds must list two or more different whole numbers")
        if not isinstance(arms, dict) or not all(isinstance(flags, dict) for flags in arms.values()):
            return [*mistakes, "arms must map names to flags, such as {base: {}, more: {ssl_tasks: rotation}}"]
        known = {one.name for one in all_fields()}
        for name, flags in arms.items():
            if not NAME.fullmatch(str(name)):
                mistakes.append(f"the arm {name!r} must be named by letters, digits, +, - and .")
            mistakes += [f"arm {name}: there is no flag --{flag}" for flag in flags if flag not in known]
            if set(flags) <= known:
                try:
                    Settings(flags).check()
                except ConfigError as err:
                    mistakes.append(f"arm {name}: {err}")
        mistakes += [
            f"compare: there is no arm {name!r}"
            for name in study["compare"]
            if not any(control(name, arm, list(arms)) for arm in arms) and name not in arms
        ]
        if not isinstance(study["evaluate"], list) or not study["evaluate"]:
            mistakes.append("evaluate must list one command or more")
        return mistakes

    def quick(self) -> Study:
        """Returns the study with two arms and two seeds, to try whether it runs."""
        names = list(self.arms)
        arms = {name: self.arms[name] for name in (names[0], names[-1])}
        compare = [name for name in self.compare if name in arms]
        return replace(self, seeds=self.seeds[:2], arms=arms, compare=compare)


def swept(arms: dict[str, Any]) -> dict[str, Any]:
    """Returns the arms without flags that are null, those with a list of ratios as one arm for each ratio, named by its
    percentage."""
    out = {}
    for name, given in arms.items():
        flags = {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given
        ratios = flags.get("ssl_ratio") if isinstance(flags, dict) else None
        if isinstance(ratios, list):
            out |= {f"{name}-{100 * ratio:g}": {**flags, "ssl_ratio": ratio} for ratio in ratios}
        else:
            out[name] = flags
    return out


def control(name: str, arm: str, arms: Sequence[str]) -> str | None:
    """Returns the arm that `arm` is compared with under `compare: [name]`: of its own ratio where there are several."""
    found = name if name in arms else f"{name}-{arm.rpartition('-')[2]}"
    return found if found in arms and found != arm else None
