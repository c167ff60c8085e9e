"""Tied weights stored separately in an export, because an adapter changes one name only.

The manifest records which names are one weight of the base (``base.ties``), so that an adapter that
is added later changes the same names as in a new build: PEFT wraps the tied model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_export.adapters.declared_ties import tying_sections, untied_config
from lora_export.adapters.resolve import ModelNames
from lora_export.adapters.ties import TieGroup, group_of
from lora_export.core.base_record import TieRecord
from lora_export.core.declarations import class_named, input_embeddings, words_tied
from lora_export.core.tensors import same_values
from lora_export.weights.converted import as_loaded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.core.manifest import Manifest
    from lora_export.core.tensors import Tensor
    from lora_export.graph.spec.template import GraphTemplate
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["recorded_ties", "tie_records", "ties_in_graph", "untie"]


def untie(checkpoint: Checkpoint, template: GraphTemplate) -> Checkpoint:
    """Return the checkpoint with a tensor for each name of its tied weights, its config untied.

    Args:
        checkpoint: The base.
        template: The tied graph; the aliases of its parameters are the further names.
    """
    model = ModelNames(template.parameters, "")
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


def ties_in_graph(sources: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[TieGroup, ...]:
    """Return the tied input embedding of a base that a user's graph holds several times.

    Args:
        sources: The checkpoint's tensor for each parameter of the graph.
        config: The checkpoint's ``config.json``.
    """
    if not words_tied(config):
        return ()
    for name, first in sources.items():
        if name.removesuffix(".weight") in input_embeddings():
            same = (
                other
                for other, tensor in sources.items()
                if other != name and tensor.shape == first.shape and same_values(first, tensor)
            )
            names = (name, *same)
            return (TieGroup(names, names, name),) if len(names) > 1 else ()
    return ()


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
    return tuple(
        group_of(names, held=True, model_class=base.model_class)
        for names in groups
        if len(names) > 1
    )
