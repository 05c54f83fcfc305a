"""The only part that knows LLaVA: the hook, the one-record view and the self-test."""

from .hook import attach, check, detach

__all__ = ["attach", "check", "detach"]
