"""Quantization of weights: float32 values become small integers and scales, block by block."""
