"""The rules by which transformers renames, stacks and splits a checkpoint for a model."""

from __future__ import annotations

from typing import Any

from lora_export.core.name_conversions import Conversion
from lora_export.graph.trace.transformers_private import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    conversion_rules,
)

__all__ = ["conversions_of", "read_rule"]

_OPERATIONS = {"MergeModulelist": "stack", "Concatenate": "concatenate", "Chunk": "chunk"}


def conversions_of(model: Any) -> tuple[Conversion, ...]:
    """Return the rules of `model`, in the order in which transformers applies them."""
    return tuple(read_rule(rule) for rule in conversion_rules(model))


def read_rule(rule: Any) -> Conversion:
    """Return one rule of transformers as data."""
    operations: tuple[str, ...] = ()
    if isinstance(rule, WeightConverter):
        operations = tuple(_name_of(operation) for operation in rule.operations)
    elif type(rule) not in {WeightRenaming, PrefixChange}:
        operations = (type(rule).__name__,)
    return Conversion(
        pattern=rule.compiled_sources.pattern,
        targets=tuple(rule.target_patterns),
        operations=operations,
        scope=rule.scope_prefix,
        prefix=rule.base_model_prefix or "",
    )


def _name_of(operation: Any) -> str:
    """Return ``stack:0`` and the like; the class where it is not known, or counts by the config."""
    kind = type(operation).__name__
    if kind not in _OPERATIONS or getattr(operation, "num_shards_attribute", None) is not None:
        return kind
    return f"{_OPERATIONS[kind]}:{operation.dim}"
