"""The form of a graph, as its file says it: whose operators it is made of."""

from __future__ import annotations

from typing import Final

__all__ = ["FORM_PROPERTY", "OLDEST_FOR_ORT_FORM", "ORT_FORM", "is_ort_form"]

ORT_FORM: Final = "ort"
"""A decoder with operators of ONNX Runtime."""
FORM_PROPERTY: Final = "lora_export.graph_form"
"""The metadata of an ONNX file that names its form; a portable graph has none."""
OLDEST_FOR_ORT_FORM: Final = (1, 24)
"""The first ONNX Runtime that computes such a graph: 1.20 does not open it, and 1.22 and 1.23 let
a window see one position more."""


def is_ort_form(onnx_bytes: bytes) -> bool:
    """Return whether a graph has the form `ORT_FORM`."""
    return FORM_PROPERTY.encode() in onnx_bytes
