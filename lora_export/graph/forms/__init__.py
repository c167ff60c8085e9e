"""Graphs in the forms that other runtimes read: other inputs and outputs, the same computation."""
