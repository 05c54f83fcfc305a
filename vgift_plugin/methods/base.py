"""Interfaces of a method: its flags, and its plan for one run."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from ..data.arguments import filled
from ..hosts.base import Host

if TYPE_CHECKING:  # it loads torch
    from .run import Run

F = TypeVar("F", bound="MethodFlags")


@dataclass(frozen=True)
class MethodFlags:
    """Base of the flags of one method: a frozen dataclass whose fields become fields of the host's arguments.

    Class attributes:
        PATHS: the flags that name a file or a folder.
        REPORTING: the flags that change only what is reported, so that a resumed run may have others.
    """

    PATHS: ClassVar[tuple[str, ...]] = ()
    REPORTING: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls: type[F], source: Any) -> F:
        """Returns the flags from an object's attributes or a mapping's keys; missing ones get their defaults."""
        return filled(cls, source)

    @classmethod
    def absolute(cls, name: str, value: str) -> str:
        """Returns the value of one of `PATHS` so that it means the same in another working directory."""
        return os.path.abspath(value)

    def as_dict(self) -> dict[str, Any]:
        """Returns {flag: value}, JSON-able."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def changed(self) -> dict[str, Any]:
        """Returns {flag: value} for the flags that differ from their defaults."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}

    def mistakes(self) -> list[str]:
        """Returns one sentence per mistake in the flags and their files: the flag, its value and the remedy."""
        return []


class Plan(Protocol):
    """What a method will do in one run. It reads all files and checks all records when it is created."""

    @property
    def facts(self) -> dict[str, str]:
        """{name: value} that must be equal on all ranks."""

    def apply(self, run: Run) -> None:
        """Runs the checks possible before the first step, then changes the run."""


class Method(Protocol):
    """One paper's method.

    Attributes:
        alone: why it cannot be combined with other methods, and what to do instead; "" if it can.
    """

    alone: str = ""

    @property
    def Flags(self) -> type[MethodFlags]:
        """The class of its flags; a class attribute of each method."""

    def wanted(self, flags: Any) -> str:
        """Returns what the flags ask for, such as `the loss on instructions`; an empty string for nothing."""

    def check(self, flags: Any, host: Host, module: ModuleType) -> None:
        """Raises the errors that can be found before a model is loaded, beyond `MethodFlags.mistakes`; none here."""
        return None

    def plan(self, flags: Any, run: Run) -> Plan | None:
        """Returns the plan for this run; None (with a reason in the log) if there is nothing to do."""
