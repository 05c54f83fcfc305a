"""What a method is: flags, a plan for one run, and what the plan changes."""

from __future__ import annotations

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
    """

    PATHS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls: type[F], source: Any) -> F:
        """Returns the flags held by any object or mapping that has (some of) them as attributes or keys."""
        return filled(cls, source)

    def as_dict(self) -> dict[str, Any]:
        """Returns {flag: value}, JSON-able."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def changed(self) -> dict[str, Any]:
        """Returns {flag: value} of the flags that are not at their defaults."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}

    def mistakes(self) -> list[str]:
        """Returns what is wrong with the flags and the files they name, one sentence each: flag, value and cure."""
        return []


class Plan(Protocol):
    """What a method will do in one run. All files are read and all records looked at when it is made."""

    @property
    def facts(self) -> dict[str, str]:
        """{what: value} that must be equal on all ranks."""

    def apply(self, run: Run) -> None:
        """Tests what can be tested before the first step, then changes the run."""


class Method(Protocol):
    """One paper's method.

    Attributes:
        name: as the paper calls it.
        alone: whether it goes with no other method.
    """

    name: str
    alone: bool

    @property
    def Flags(self) -> type[MethodFlags]:
        """The class of its flags; a class attribute of each method."""

    def wanted(self, flags: Any) -> str:
        """Returns in words what the flags ask for, such as `the loss on instructions`; empty where they ask nothing."""

    def check(self, flags: Any, host: Host, module: ModuleType) -> None:
        """Raises what can be told before a model is loaded, beyond `MethodFlags.mistakes`."""

    def plan(self, flags: Any, run: Run) -> Plan | None:
        """Returns what is to be done in this run; None where that is nothing (and says why in the log)."""
