"""One folder per paper. `METHODS` lists the methods in the order in which they are applied to a run.

L2T comes before V-GIFT, so that mixed-in samples also get labels for their instructions.
"""

from .base import Method
from .l2t import L2T
from .stic import STIC
from .vgift import VGIFT
from .vitp import ViTP

METHODS: tuple[Method, ...] = (L2T(), VGIFT(), ViTP(), STIC())
