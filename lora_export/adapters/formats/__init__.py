"""Readers: one module per adapter format, each returning the canonical adapter."""
