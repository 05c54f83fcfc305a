"""Wrappers that forward every attribute they do not have themselves."""

from __future__ import annotations

from typing import Any


class Proxy:
    """A wrapper around another object, `base`. Attributes it does not have are the base's."""

    base: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "base" not in self.__dict__:  # unpickling asks before `base` is set
            raise AttributeError(name)
        return getattr(self.base, name)


class WrappedDataset(Proxy):
    """A map-style dataset around another one."""

    def __len__(self) -> int:
        return len(self.base)
