"""The deployable graphs of an export, and the verdict on the export.

A base graph whose head only adapters bring is not applicable: it is never run, so it enters no
verdict. Of a graph that adapters share each adapter has a verdict of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.stored_adapters import find_stored
from lora_export.ondevice.judge.tolerances import worst_of

if TYPE_CHECKING:
    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.ondevice.judge.tolerances import Verdict

__all__ = [
    "NOT_APPLICABLE",
    "checked_parts",
    "deployable",
    "is_deployable",
    "lossy_names",
    "verdict_of",
    "verification_of",
]

NOT_APPLICABLE: Final = "not applicable"
"""Shown in place of a verdict on a graph with missing parameters."""
_UNCLEAR: Final[tuple[Verdict, ...]] = ("fail", "ambiguous")


def is_deployable(graph: GraphRecord) -> bool:
    """Return whether a graph has all of its parameters, or gets them from each adapter."""
    return graph.is_shared or not graph.missing


def deployable(manifest: Manifest) -> tuple[str, ...]:
    """Return the names that can be deployed: the base where it is complete, and the adapters."""
    base = manifest.graphs.get(BASE_GRAPH)
    return (*((BASE_GRAPH,) if base is not None and not base.missing else ()), *manifest.adapters)


def verification_of(manifest: Manifest, name: str) -> Verdict:
    """Return the verdict on an adapter or the base, for every mode of export."""
    stored = find_stored(manifest, name)
    return stored.record.verification if stored is not None else "unverified"


def verdict_of(manifest: Manifest) -> Verdict:
    """Return the worst verdict on what can be deployed, and on the graphs that adapters share.

    What quantization cost counts too, where a limit was set for it.
    """
    found = {verification_of(manifest, name) for name in deployable(manifest)}
    found |= {graph.verification for graph in manifest.graphs.values() if graph.is_shared}
    losses = {graph.loss for graph in manifest.graphs.values()}
    found |= {verdict for verdict in _UNCLEAR if verdict in losses}
    return worst_of(found)


def checked_parts(manifest: Manifest) -> str:
    """Return what is checked of an export that torch has not run: its graph, or nothing.

    A graph of a shipped template is that of a trace, and the template's witness was run by torch.
    One that was rewritten since (quantized, or in another form) is more than the template.
    """
    rewritten = manifest.base.quantization is not None or any(
        graph.form is not None for graph in manifest.graphs.values()
    )
    if manifest.base.template is None or rewritten or verdict_of(manifest) != "unverified":
        return ""
    return f"graph checked; {'adapter' if manifest.adapters else 'base'} unverified"


def lossy_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the graphs and the adapters that lost more by quantization than their limits allow.

    A graph that adapters share is named where no adapter's own verdict explains its own.
    """
    adapters = [name for name in manifest.adapters if _loss_of(manifest, name) == "fail"]
    graphs = [
        name
        for name, graph in manifest.graphs.items()
        if graph.loss == "fail" and name not in adapters and not (graph.is_shared and adapters)
    ]
    return (*graphs, *adapters)


def _loss_of(manifest: Manifest, name: str) -> str | None:
    """Return the verdict on what quantization cost an adapter; None where there is none."""
    stored = find_stored(manifest, name)
    return stored.record.loss if stored is not None else None
