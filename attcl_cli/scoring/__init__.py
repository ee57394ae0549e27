"""Comparing synthesised volumes with the held-out ground truth: pairs, metrics, rows, figures, pages."""
