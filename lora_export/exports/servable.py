"""The adapters of an export that may be served: those that are there, complete and not refuted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.verdict import lossy_graphs, verification_of

if TYPE_CHECKING:
    from lora_export.core.manifest import Manifest

__all__ = ["require_servable"]


def require_servable(manifest: Manifest, name: str) -> None:
    """Raise unless `name`, an adapter or ``base``, may be served."""
    if name == BASE_GRAPH:
        if missing := manifest.base_graph.missing:
            msg = f"the base has no {missing[0]!r}: only adapters bring it"
            raise UnsupportedError(msg, hint="Name adapters: --adapter NAME.")
        return
    if name not in manifest.adapters:
        msg = f"the export has no adapter {name!r}"
        raise AdapterError(msg, hint=f"It has: {', '.join(manifest.adapters) or 'none'}.")
    if verification_of(manifest, name) == "fail":
        msg = f"adapter {name!r} failed its verification"
        raise AdapterError(msg, hint="Look into reports/parity.json; leave it out with --adapter.")
    if name in lossy_graphs(manifest):
        msg = f"adapter {name!r} lost more by quantization than allowed"
        raise AdapterError(
            msg, hint="Look into reports/quantization.json; leave it out with --adapter."
        )
