"""The built-in tasks, one file each."""

from .color import Color
from .correspondence import Correspondence
from .flipped import Flipped
from .jigsaw import Jigsaw
from .jigsaw_pair import JigsawPair
from .missing import Missing
from .position import Position
from .relative_rotation import RelativeRotation
from .rotation import Rotation
from .same_scene import SameScene

__all__ = [
    "Color",
    "Correspondence",
    "Flipped",
    "Jigsaw",
    "JigsawPair",
    "Missing",
    "Position",
    "RelativeRotation",
    "Rotation",
    "SameScene",
]
