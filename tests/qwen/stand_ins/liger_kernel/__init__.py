"""Stands in for liger-kernel, whose kernels need a GPU; see transformers."""
