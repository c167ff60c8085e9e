"""Type promotion of a traced program without running it a second time.

The exporter makes implicit promotions explicit (``int + float``, sums of booleans) with an
interpreter that runs every operator again on fake tensors, although tracing has left each result
beside its node. Here the interpreter takes the result that is there; what a promotion changes, it
runs. This reaches into internals; under a torch whose exporter is built differently, every operator
is run.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from lora_export.core.torch_private import INTERPRETER, promote_arguments, replaced, type_promotion

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["promotion_from_known_values"]


@contextlib.contextmanager
def promotion_from_known_values() -> Iterator[None]:
    """Let the exporter's type promotion use the values that tracing left, until the block ends."""
    promotion = type_promotion()
    if promotion is None:
        yield
        return
    interpreter: Any = getattr(promotion, INTERPRETER)

    class Remembering(interpreter):  # type: ignore[misc]
        """The exporter's interpreter, which runs only what has no value yet."""

        def run_node(self, n: torch.fx.Node) -> Any:
            """Promote the arguments of `n` where its rule says so, and return its value."""
            if n.op != "call_function" or "val" not in n.meta:
                return super().run_node(n)
            promote_arguments(promotion, self, n)
            return n.meta["val"]

    with replaced(promotion, INTERPRETER, Remembering):
        yield
