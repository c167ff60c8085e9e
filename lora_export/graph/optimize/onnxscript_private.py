"""Private APIs of onnxscript: everything here that has no public name there.

Read with the versions of `lora_export.core.supported_versions`; another version may need a change
here, and nowhere else.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Final

from onnxscript import rewriter
from onnxscript.optimizer import _constant_folding

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["constant_folding", "local_rewrites", "without_prints"]

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
