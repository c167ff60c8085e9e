"""The rows of ``reports/quantization.json``: of each graph, and of the adapters that share one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.modes import SHARED_MODES
from lora_export.core.reports.quantization_report import QuantizationRow
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.verification.loss.gates import worst_loss

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lora_export.core.manifest import Manifest
    from lora_export.verification.parity import GraphParity

__all__ = ["quantization_rows", "rows_without"]


def quantization_rows(
    manifest: Manifest, earlier: Mapping[str, QuantizationRow], found: Mapping[str, GraphParity]
) -> dict[str, QuantizationRow]:
    """Return the rows of graphs whose loss was measured now.

    A graph that adapters share is as good as the worst of all; what is recorded of those that were
    not measured now stays.

    Args:
        manifest: The export's manifest.
        earlier: The rows that are recorded, by graph.
        found: The verdicts on graphs.
    """
    rows: dict[str, QuantizationRow] = {}
    for name, parity in found.items():
        own = {
            each: one.quantization
            for each, one in parity.adapters.items()
            if one.quantization is not None
        }
        if own:
            known = earlier[name].adapters if name in earlier else {}
            rows[name] = _shared_row({**_kept(manifest, known), **own})
        elif parity.quantization is not None:
            rows[name] = parity.quantization
    return rows


def rows_without(
    manifest: Manifest, rows: Mapping[str, QuantizationRow], gone: Collection[str]
) -> dict[str, QuantizationRow]:
    """Return rows without graphs and adapters that are gone; a shared graph is judged by the rest.

    Args:
        manifest: The export's manifest.
        rows: The rows that are recorded, by graph.
        gone: Adapters that are others now.
    """
    found: dict[str, QuantizationRow] = {}
    for name, row in rows.items():
        if name not in manifest.graphs or name in gone:
            continue
        kept = {each: own for each, own in row.adapters.items() if each not in gone}
        kept = _kept(manifest, kept)
        found[name] = row if len(kept) == len(row.adapters) else _shared_row(kept)
    return found


def _kept(manifest: Manifest, rows: Mapping[str, QuantizationRow]) -> dict[str, QuantizationRow]:
    """Return the rows of adapters that still share a graph."""
    return {
        name: row
        for name, row in rows.items()
        if name in manifest.adapters and stored_adapter(manifest, name).mode in SHARED_MODES
    }


def _shared_row(adapters: Mapping[str, QuantizationRow]) -> QuantizationRow:
    verdict = worst_loss([row.verdict for row in adapters.values()])
    told = [f"{name} is {row.verdict}" for name, row in adapters.items() if row.verdict == verdict]
    reason = "every adapter survives" if verdict == "pass" else "; ".join(told)
    return QuantizationRow(verdict=verdict, reason=reason, adapters=dict(adapters))
