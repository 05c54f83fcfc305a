"""The flags of all methods together: which methods they ask for, and all mistakes in one message."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar

from ..data.arguments import option, why_not
from ..errors import ConfigError
from . import METHODS, Method
from .base import MethodFlags


@dataclass(frozen=True)
class RunFlags(MethodFlags):
    """Flags of the run, whichever methods it uses."""

    REPORTING: ClassVar[tuple[str, ...]] = ("ssl_resume_anyway",)

    ssl_resume_anyway: bool = option(
        False, "go on where a resumed run has other flags, images or records than it was begun with; that is noted"
    )


class Settings:
    """All methods with their flags.

    Args:
        source: an object or a mapping that holds (some of) the flags as attributes or keys.
    """

    def __init__(self, source: Any):
        self.methods: list[tuple[Method, MethodFlags]] = [(method, method.Flags.of(source)) for method in METHODS]
        self.run = RunFlags.of(source)

    def _flags(self) -> list[MethodFlags]:
        return [*(flags for _, flags in self.methods), self.run]

    def wanted(self) -> list[tuple[Method, MethodFlags]]:
        """Returns the methods that the flags ask for, in the order in which they are applied."""
        return [(method, flags) for method, flags in self.methods if method.wanted(flags)]

    def words(self) -> str:
        """Returns what the flags ask for, as text; an empty string for nothing."""
        return " and ".join(method.wanted(flags) for method, flags in self.wanted())

    def changed(self) -> dict[str, Any]:
        """Returns {flag: value} for all flags that differ from their defaults."""
        return {name: value for flags in self._flags() for name, value in flags.changed().items()}

    def as_dict(self) -> dict[str, Any]:
        """Returns {flag: value}, JSON-able."""
        return {name: value for flags in self._flags() for name, value in flags.as_dict().items()}

    def check(self) -> None:
        """Raises ConfigError with all mistakes in the flags and in the files they name, if there are any."""
        if wrong := [f"--{name} {value!r} {why}" for name, value in self.changed().items() if (why := why_not(value))]:
            raise ConfigError.of(wrong)
        mistakes = [mistake for _, flags in self.methods for mistake in flags.mistakes()]
        for method, flags in self.wanted():
            own = {one.name for kind in (flags, self.run) for one in fields(kind)}
            others = [name for name in self.changed() if name not in own]
            if method.alone and others:
                given = ", ".join(f"--{name}" for name in others)
                mistakes.append(f"{method.wanted(flags)} goes without {given}: {method.alone}")
        if mistakes:
            raise ConfigError.of(mistakes)


def all_flags() -> list[type[MethodFlags]]:
    """Returns the classes of all methods' flags, and of the run's."""
    return [*(method.Flags for method in METHODS), RunFlags]


def all_fields() -> list[Field]:
    """Returns the fields of all flags."""
    return [one for kind in all_flags() for one in fields(kind)]


def all_paths() -> list[str]:
    """Returns the flags that name a file or a folder."""
    return [name for kind in all_flags() for name in kind.PATHS]


def with_absolute_paths(flags: dict[str, Any]) -> dict[str, Any]:
    """Returns {flag: value} with files and folders that do not depend on the working directory."""
    changed = {
        name: kind.absolute(name, flags[name])
        for kind in all_flags()
        for name in kind.PATHS
        if flags.get(name) is not None
    }
    return {**flags, **changed}


def reporting() -> list[str]:
    """Returns the flags that change only what is reported."""
    return [name for kind in all_flags() for name in kind.REPORTING]
