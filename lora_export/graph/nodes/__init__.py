"""Nodes of an ONNX graph: patterns, shapes, uses of a weight."""
