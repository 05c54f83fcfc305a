"""L2T (arXiv 2503.22215): the loss on the instruction, too."""
