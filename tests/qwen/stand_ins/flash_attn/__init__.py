"""Stands in for flash-attn, which needs a GPU; see flash_attn_interface."""
