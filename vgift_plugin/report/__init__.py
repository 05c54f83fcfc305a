"""What pages and tables have in common: templates, plots, intervals."""
