"""Type promotion of a traced program without running it a second time.

The exporter makes implicit promotions explicit (``int + float``, sums of booleans) with an
interpreter that runs every operator again on fake tensors, although tracing has left each result
beside its node. Here the interpreter takes the result that is there; what a promotion changes, it
runs. This reaches into internals (tried with torch 2.13); under a torch whose exporter is built
differently, every operator is run.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["promotion_from_known_values"]


@contextlib.contextmanager
def promotion_from_known_values() -> Iterator[None]:
    """Let the exporter's type promotion use the values that tracing left, until the block ends."""
    try:
        from torch.onnx._internal.fx.passes import type_promotion

        interpreter: Any = type_promotion._TypePromotionInterpreter  # noqa: SLF001  (no public name)
        rule_of = type_promotion.get_type_promotion_rule
    except (ImportError, AttributeError):
        yield
        return

    class Remembering(interpreter):  # type: ignore[misc]
        """The exporter's interpreter, which runs only what has no value yet."""

        def run_node(self, n: torch.fx.Node) -> Any:
            """Promote the arguments of `n` where its rule says so, and return its value."""
            if n.op != "call_function" or "val" not in n.meta:
                return super().run_node(n)
            with self._set_current_node(n):
                if rule := rule_of(n, self.type_promotion_table):
                    self._maybe_promote_node(n, rule)
            return n.meta["val"]

    type_promotion._TypePromotionInterpreter = Remembering  # type: ignore[misc]  # noqa: SLF001
    try:
        yield
    finally:
        type_promotion._TypePromotionInterpreter = interpreter  # type: ignore[misc]  # noqa: SLF001
