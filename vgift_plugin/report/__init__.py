"""Shared parts of pages and tables: templates, plots, intervals."""
