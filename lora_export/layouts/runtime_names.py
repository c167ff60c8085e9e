"""The names of the runtimes that have a layout, for the command line and for recipes."""

from __future__ import annotations

from typing import Final, Literal, get_args

__all__ = ["RUNTIME_NAMES", "RuntimeName"]

RuntimeName = Literal["genai", "optimum", "sentence-transformers", "transformers.js"]
RUNTIME_NAMES: Final = get_args(RuntimeName)
"""`lora_export.layouts.runtimes.RUNTIMES` has a row for each."""
