"""Quantization loss: whether an adapter survives it, what it costs, and the gates on both."""
