"""The built-in tasks: one file each, one import line each."""

from .color import Color
from .correspondence import Correspondence
from .rotation import Rotation

__all__ = ["Color", "Correspondence", "Rotation"]
