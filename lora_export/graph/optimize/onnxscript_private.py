"""Private APIs of onnxscript: everything here that has no public name there.

Read with the versions of `lora_export.core.supported_versions`; another version may need a change
here, and nowhere else.
"""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from onnxscript import rewriter
from onnxscript._internal import values
from onnxscript.optimizer import _constant_folding

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["constant_folding", "domains_unparsed", "local_rewrites", "without_prints"]

_QUADRATIC: Final = "SlicesSplit"
"""The rule whose time grows with the square of the graph's size.

It applied to none of the models tried, and took nine tenths of the folding of a Llama of 22 layers.
"""


def constant_folding(*, input_size_limit: int, output_size_limit: int) -> ir.passes.PassBase:
    """Return the pass that folds constants and shape arithmetic; the limits count elements."""
    folding: ir.passes.PassBase = _constant_folding.FoldConstantsPass(
        shape_inference=True,
        input_size_limit=input_size_limit,
        output_size_limit=output_size_limit,
    )
    return folding


def local_rewrites() -> ir.passes.PassBase:
    """Return the pass that applies onnxscript's local rules, but for the quadratic one."""
    rewrites: ir.passes.PassBase = rewriter.RewritePass(
        [
            rule
            for rule in rewriter._DEFAULT_REWRITE_RULES  # noqa: SLF001  (no public name)
            if rule.name != _QUADRATIC
        ]
    )
    return rewrites


@contextlib.contextmanager
def without_prints() -> Iterator[None]:
    """Keep stdout clean until the block ends: onnxscript 0.6 prints how many rules applied."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def domains_unparsed() -> Iterator[None]:
    """Let torch read the domain of a traced function without parsing its source.

    For each of its 500 functions it asks for ``function_ir``, which parses the function, and reads
    the ``domain`` of what comes: that of the function's opset. Until the block ends, that is all
    there is of ``function_ir``; an onnxscript that is built differently stays as it is.
    """
    traced: Any = getattr(values, "TracedOnnxFunction", None)
    parsed = getattr(traced, "function_ir", None)
    if not isinstance(parsed, property):
        yield
        return
    traced.function_ir = property(domain_unparsed)
    try:
        yield
    finally:
        traced.function_ir = parsed


def domain_unparsed(function: Any) -> Any:
    """Return ``function_ir`` of a traced function with its domain alone."""
    return SimpleNamespace(domain=function._opset.domain)  # noqa: SLF001  (no public name)
