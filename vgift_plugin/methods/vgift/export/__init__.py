"""`vgift export`: writes the samples that training would see to files, for trainers that cannot load a plugin.

Chunks depend only on the settings, so the result is the same to the byte for any number of processes, machines and
interruptions; see `data.jobs`.
"""
