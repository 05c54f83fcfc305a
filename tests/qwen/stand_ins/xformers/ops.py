"""What is imported and never called without a GPU."""
