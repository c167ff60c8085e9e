"""Exports that hold tied weights of their base apart, because an adapter changes one name only.

The manifest records which names are one weight of the base (``base.ties``), so that an adapter that
is added later changes the same names as in a new build: PEFT wraps the tied model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.adapters.declared_ties import tying_sections, untied_config
from lora_export.adapters.resolve import Names
from lora_export.adapters.ties import TieGroup, group_of
from lora_export.base.declarations import class_named
from lora_export.base.manifest import TieRecord
from lora_export.weights.converted import as_loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.base.manifest import Manifest
    from lora_export.graph.template import GraphTemplate
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["recorded_ties", "tie_records", "untie"]


def untie(checkpoint: Checkpoint, template: GraphTemplate) -> Checkpoint:
    """Return the checkpoint with a tensor for each name of its tied weights, its config untied.

    Args:
        checkpoint: The base.
        template: The tied graph; the aliases of its parameters are the further names.
    """
    model = Names(template.parameters, "")
    tensors = as_loaded(
        checkpoint.tensors, template.conversions, lambda name: model.find(name) is not None
    )
    for parameter in template.parameters:
        names = (parameter.name, *parameter.aliases)
        present = next((tensors[name] for name in names if name in tensors), None)
        if present is not None:
            tensors |= {name: present for name in names if name not in tensors}
    known = class_named(template.model_class)
    sections = tying_sections([known], checkpoint.config) if known is not None else {""}
    config = untied_config(checkpoint.config, sections)
    return replace(checkpoint, config=config, tensors=tensors)


def tie_records(groups: Sequence[TieGroup]) -> list[TieRecord]:
    """Return the tied weights as the manifest records them."""
    return [TieRecord(names=list(each.names), input=each.input) for each in groups]


def recorded_ties(manifest: Manifest) -> tuple[TieGroup, ...]:
    """Return the weights that the base ties and the graphs of an export hold apart.

    An export of an earlier version records only which parameters come from one tensor
    (``base.untied``): their groups follow from the table of parameters.
    """
    base = manifest.base
    if base.ties:
        return tuple(TieGroup(tuple(r.names), tuple(r.names), r.input) for r in base.ties)
    untied = set(base.untied)
    rows = ([use.initializer for use in uses] for uses in manifest.parameters.values())
    groups = ([name for name in names if name in untied] for names in rows)
    return tuple(group_of(names, held=True) for names in groups if len(names) > 1)
