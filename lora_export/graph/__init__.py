"""Graphs: exported without weights, folded, cached, and pointed at weight files."""
