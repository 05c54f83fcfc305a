"""The training codes: one file a family, and what they share."""

IGNORE_INDEX = -100  # torch's label for "no loss here", which all of them use
