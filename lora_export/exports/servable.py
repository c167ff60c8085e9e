"""The adapters of an export that may be served: those that are there, complete and not refuted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import AdapterError, ParityError, UnsupportedError
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.exports.verdict import lossy_names, verification_of

if TYPE_CHECKING:
    from lora_export.core.manifest import Manifest

__all__ = ["refusal", "require_servable"]

_PARITY = "reports/parity.json"
_LOSSES = "reports/quantization.json"


def require_servable(manifest: Manifest, name: str) -> None:
    """Raise unless an adapter, or the base, may be served.

    Args:
        manifest: The export's manifest.
        name: The adapter, or ``base``.

    Raises:
        AdapterError: There is no such adapter.
        ParityError: It failed its verification, or quantization took more of it than allowed.
        UnsupportedError: It is the base, and only adapters bring some of its parameters.
    """
    if name == BASE_GRAPH:
        if missing := manifest.base_graph.missing:
            msg = f"the base has no {missing[0]!r}: only adapters bring it"
            raise UnsupportedError(msg, hint="Name adapters: --adapter NAME.")
    elif name not in manifest.adapters:
        msg = f"the export has no adapter {name!r}"
        raise AdapterError(msg, hint=f"It has: {', '.join(manifest.adapters) or 'none'}.")
    what = "the base" if name == BASE_GRAPH else f"adapter {name!r}"
    if verification_of(manifest, name) == "fail":
        msg = f"{what} failed its verification"
        raise ParityError(msg, hint=_way_out(manifest, _PARITY))
    if {name, stored_adapter(manifest, name).graph}.isdisjoint(lossy_names(manifest)):
        return
    msg = f"{what} lost more by quantization than allowed"
    raise ParityError(msg, hint=_way_out(manifest, _LOSSES))


def refusal(manifest: Manifest, name: str) -> str | None:
    """Return why an adapter may not be served; None where it may.

    Args:
        manifest: The export's manifest.
        name: The adapter, or ``base``.
    """
    try:
        require_servable(manifest, name)
    except (AdapterError, ParityError, UnsupportedError) as error:
        return error.message
    return None


def _way_out(manifest: Manifest, report: str) -> str:
    """Return the hint: the report, and the adapters that may be served."""
    lost = lossy_names(manifest)
    left = [
        name
        for name in manifest.adapters
        if name not in lost
        and stored_adapter(manifest, name).graph not in lost
        and verification_of(manifest, name) != "fail"
    ]
    if left:
        others = " ".join(f"--adapter {name}" for name in left)
        return f"Look into {report}; serve the others: {others}."
    return f"Look into {report}."
