"""Graphs that another exporter wrote: read without their weights, matched to a checkpoint."""
