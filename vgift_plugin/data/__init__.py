"""What everything stands on: records, photographs, named randomness, files and jobs. No torch, no host."""
