"""Requirements on an export that several runtimes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import UnsupportedError
from lora_export.core.graph_forms import DEFAULT_FORM

if TYPE_CHECKING:
    from lora_export.layouts.description import ExportKind, Subject

__all__ = ["require_growing_cache", "require_numpy_dtype", "require_portable"]

_GENERATES = "text-generation"


def require_growing_cache(kind: ExportKind, runtime: str) -> None:
    """Require of a decoder that its keys and values are inputs and outputs, and grow.

    Raises:
        UnsupportedError: They are not.
    """
    if kind.task == _GENERATES and not kind.cache:
        msg = f"{runtime} needs keys and values as inputs and outputs; the graph has no cache"
        raise UnsupportedError(msg, hint="Export it without --no-cache.")
    if kind.cache_length is not None:
        msg = f"{runtime} cannot run a static cache (of {kind.cache_length} positions)"
        raise UnsupportedError(msg, hint="Export it without --cache-length: the cache then grows.")


def require_portable(kind: ExportKind, runtime: str) -> None:
    """Require of an export that its graphs are of ONNX's own operators.

    Raises:
        UnsupportedError: They are of ONNX Runtime's form for decoders.
    """
    if kind.form != DEFAULT_FORM:
        msg = f"{runtime} takes the graph form {DEFAULT_FORM!r}; the export has {kind.form!r}"
        raise UnsupportedError(msg, hint="Export it without --graph-form.")


def require_numpy_dtype(subject: Subject, runtime: str) -> None:
    """Require that inputs and outputs are numbers that NumPy and JavaScript have.

    Raises:
        UnsupportedError: They are bfloat16.
    """
    if subject.manifest.base.dtype == "bfloat16":
        msg = f"{runtime} cannot feed a graph in bfloat16"
        raise UnsupportedError(msg, hint="Export it with --dtype float32 or float16.")
