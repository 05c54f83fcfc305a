"""STIC (arXiv 2405.19716): a model taught by its own descriptions. `vgift stic prefer` and `vgift stic describe`."""
