"""Graphs that adapters share: adapters as inputs, or as stacks with one row each."""
