"""`vgift export`: the very samples that training would see, as files, for trainers that cannot load a plugin.

The work is cut into chunks whose borders depend on nothing but the settings. A chunk is done when its receipt lies in
`OUT/.parts`; whoever finds all receipts there assembles them. So the result is the same to the byte however many
processes or machines wrote it, and however often they were killed.
"""

from .job import export

__all__ = ["export"]
