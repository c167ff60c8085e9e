"""Graphs: exported without weights, optimized, cached, and pointed at weight files."""
