"""One folder a paper. `METHODS` lists them in the order in which they are applied to a run.

L2T comes before V-GIFT: samples that are mixed in get labels of their instructions, too.
"""

from .base import Method
from .l2t import L2T
from .stic import STIC
from .vgift import VGIFT
from .vitp import ViTP

METHODS: tuple[Method, ...] = (L2T(), VGIFT(), ViTP(), STIC())
