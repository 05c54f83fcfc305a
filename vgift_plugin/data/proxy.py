"""Wrappers that forward what they do not have themselves."""

from __future__ import annotations

from typing import Any


class PassesOn:
    """Something around another object, `base`: what it does not have itself is the base's."""

    base: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "base" not in self.__dict__:  # unpickling asks before the base is there
            raise AttributeError(name)
        return getattr(self.base, name)


class Around(PassesOn):
    """A dataset around another one."""

    def __len__(self) -> int:
        return len(self.base)
