"""The plugin file of ms-swift, in a folder of its own."""
