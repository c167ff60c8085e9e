"""Graphs whose weights are integers and scales."""
