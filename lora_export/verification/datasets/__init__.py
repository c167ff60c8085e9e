"""Data sets: one module for each kind, and the metrics of their answers."""
