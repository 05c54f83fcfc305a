"""What changes in training beside the samples: the loss on instructions (L2T), dropped visual tokens (ViTP), the loss
on pairs of responses (STIC)."""

IGNORE_INDEX = -100  # torch's and LLaVA's label for "no loss here"
