"""What shows. `vgift preview`: what the model is asked. `vgift audit`: can a task be solved without looking?
`vgift probe`: does a trained model look?"""

from .audit import audit
from .preview import preview
from .probe import probe

__all__ = ["audit", "preview", "probe"]
