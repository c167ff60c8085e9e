"""Foundations: errors, files, dtypes, tensors on disk, the manifest."""
