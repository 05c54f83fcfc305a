"""The built-in tasks, one file each."""

from .color import Color
from .correspondence import Correspondence
from .rotation import Rotation

__all__ = ["Color", "Correspondence", "Rotation"]
