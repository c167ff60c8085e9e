"""Ship LoRA adapters: merged or swappable ONNX graphs that provably compute base + adapter."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
