"""ViTP (arXiv 2509.17562): visual tokens dropped, and the vision tower trained."""
