"""The forms of a graph: the operators that it is made of.

portable    ONNX's own operators: every runtime
ort         a decoder with operators of ONNX Runtime, whose past and present are one buffer: ONNX
            Runtime and onnxruntime-genai
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from lora_export.ondevice.graph_form import FORM_PROPERTY, ORT_FORM

__all__ = ["DEFAULT_FORM", "FORM_PROPERTY", "GRAPH_FORMS", "ORT_FORM", "GraphForm"]

GraphForm = Literal["portable", "ort"]
"""A form, as users type it and as the manifest records it."""

GRAPH_FORMS: Final[tuple[GraphForm, ...]] = get_args(GraphForm)
DEFAULT_FORM: Final = "portable"
