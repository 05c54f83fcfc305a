"""Shared basics: records, photographs, named randomness, files and jobs. Imports neither torch nor a host."""
