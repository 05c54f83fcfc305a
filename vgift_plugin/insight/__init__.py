"""What shows. `vgift audit`: can a task be solved without looking at what its pictures show?"""

from .audit import audit

__all__ = ["audit"]
