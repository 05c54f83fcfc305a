"""`vgift export`: the samples that training would see, as files, for trainers that cannot load a plugin.

A chunk's borders depend on the settings alone, so the result is the same to the byte for any number of processes,
machines and interruptions; see `data.jobs`.
"""
