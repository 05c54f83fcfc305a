"""`vgift pairs`: matches points of pairs of different photographs by DINOv2 features."""

from .job import make_pairs

__all__ = ["make_pairs"]
