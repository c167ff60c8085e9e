"""Token rows that PEFT puts into a head whose bias its unmerged forward leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.adapters.ties import group_of, refuse_bias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.resolve import Resolved
    from lora_export.core.tensors import Tensor

__all__ = ["refuse_rows_without_bias"]


def refuse_rows_without_bias(resolved: Resolved, stored: Mapping[str, Tensor]) -> None:
    """Refuse an adapter of a graph whose rows PEFT puts into a head with a bias.

    Args:
        resolved: The adapter, resolved against the graph's parameters.
        stored: The base's tensors, by the names of these parameters.

    Raises:
        UnsupportedError: The bias of such a head is not zero.
    """
    for update in resolved.updates:
        if update.rows is not None:
            names = (update.parameter.name, *update.parameter.aliases)
            source = group_of(names).input or names[0]
            for name in names:
                refuse_bias(resolved.adapter, source, name, stored)
