"""Weights: the base checkpoint read lazily, and the writer that merges as it streams."""
