"""Tracing: a model built from its config and translated to ONNX, without weights."""
