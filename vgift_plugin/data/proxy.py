"""Wrappers that forward missing attributes to the wrapped object."""

from __future__ import annotations

from typing import Any


class Proxy:
    """A wrapper around another object, `base`. Attributes it lacks are forwarded to `base`."""

    base: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "base" not in self.__dict__:  # unpickling looks up attributes before `base` is set
            raise AttributeError(name)
        return getattr(self.base, name)


class WrappedDataset(Proxy):
    """A map-style dataset around another one."""

    def __len__(self) -> int:
        return len(self.base)
