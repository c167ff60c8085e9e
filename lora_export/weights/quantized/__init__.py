"""Checkpoints that are stored quantized, read as the floats that they stand for, lazily."""
