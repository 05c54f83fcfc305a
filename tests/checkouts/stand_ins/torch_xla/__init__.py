"""Stands in for torch_xla, which needs a TPU; see core/xla_model.py."""
