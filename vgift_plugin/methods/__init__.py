"""One folder a paper: V-GIFT, L2T, ViTP, STIC."""
