"""Runtimes: a graph or a model that can be run, behind one contract."""
