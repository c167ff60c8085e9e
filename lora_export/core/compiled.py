"""The compiled module, where it was built: `_halves.c`, `_channels.c`, `_blocks.c` and its tiles.

It is optional (docs/adr/0006): without a compiler at installation, or on a processor without the
instructions, `kernels` is None, and the modules that use it do the same in NumPy, bit for bit.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

__all__ = ["kernels"]

kernels: Any = None
with contextlib.suppress(ImportError):
    kernels = importlib.import_module("lora_export.core._kernels")
