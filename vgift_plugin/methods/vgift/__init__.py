"""V-GIFT (arXiv 2604.12966): self-supervised samples mixed into instruction tuning."""
