"""Models of Triton's Python backend; these files are copied into repositories as they are.

They import the standard library, NumPy, ONNX Runtime or tokenizers, Triton's own module, and each
other, never lora_export: a server does not have it.
"""
