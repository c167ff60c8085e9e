"""Adapters: formats read into one canonical value, resolved to base parameters, merged."""
