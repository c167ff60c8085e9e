"""The outcome of a command that changes an export: what was written, and its exit code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lora_export.core.errors import LatencyError, ParityError
from lora_export.core.modes import SHARED_GRAPHS
from lora_export.core.reports.report_model import as_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.commands.layout import RuntimeLayout
    from lora_export.core.manifest import Manifest
    from lora_export.core.reports.fidelity_report import FidelityReport
    from lora_export.core.reports.graph_report import GraphReport
    from lora_export.core.reports.latency_report import LatencyReport, LatencyRow
    from lora_export.core.reports.parity_report import ParityReport, ParityRow
    from lora_export.core.reports.quantization_report import QuantizationReport, QuantizationRow
    from lora_export.triton.repository import ModelRepository

__all__ = ["Outcome", "PackedBundle", "Reports"]


@dataclass(frozen=True)
class PackedBundle:
    """A bundle that was packed.

    Attributes:
        file: Where it is.
        name: The directory in it.
        target: The target that it is for.
        sha256: Its SHA-256.
        bytes: Its size.
        files: How many files it holds.
    """

    file: str
    name: str
    target: str
    sha256: str
    bytes: int
    files: int


@dataclass(frozen=True)
class Reports:
    """The reports that a command wrote; None for the others.

    Attributes:
        fidelity: What storing float16 or bfloat16 kept of each adapter's delta.
        graph: How a graph of the user's was matched to the base.
        parity: Each graph against its reference.
        latency: Each adapter's graph against the base graph.
        bundle: The bundle that was packed.
        quantization: What quantization left of each adapter, and what it cost.
    """

    fidelity: FidelityReport | None = None
    graph: GraphReport | None = None
    parity: ParityReport | None = None
    latency: LatencyReport | None = None
    bundle: PackedBundle | None = None
    quantization: QuantizationReport | None = None

    def as_json(self) -> dict[str, object]:
        """Return the reports that there are as JSON values, by name."""
        models = {
            "fidelity": self.fidelity,
            "graph": self.graph,
            "parity": self.parity,
            "latency": self.latency,
            "quantization": self.quantization,
        }
        found: dict[str, object] = {
            name: as_json(each) for name, each in models.items() if each is not None
        }
        return found if self.bundle is None else {**found, "bundle": asdict(self.bundle)}


@dataclass(frozen=True)
class Outcome:
    """The result of a command that builds or changes an export.

    Attributes:
        output: The export directory.
        manifest: Its manifest.
        reports: The reports that were written.
        notes: What the user should know of the adapters.
        triton: The model repository that the recipe asks for; None where it was not written.
        layouts: The layouts that the recipe asks for, where they were written.
    """

    output: Path
    manifest: Manifest
    reports: Reports = Reports()
    notes: tuple[str, ...] = ()
    triton: ModelRepository | None = None
    layouts: tuple[RuntimeLayout, ...] = ()

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0, or the code of the gate that failed.

        `strict` fails what is ambiguous, and an adapter that was to be verified and is not.
        """
        parity, latency = self.reports.parity, self.reports.latency
        if parity is not None and self._fails(parity.graphs, strict=strict):
            return ParityError.exit_code
        lost = self.reports.quantization
        if lost is not None and self._fails(lost.graphs, strict=strict):
            return ParityError.exit_code
        if latency is not None and self._fails(latency.graphs, strict=strict):
            return LatencyError.exit_code
        return 0

    def _fails(
        self,
        rows: Mapping[str, ParityRow | QuantizationRow | LatencyRow],
        *,
        strict: bool,
    ) -> bool:
        required = {*self.manifest.adapters, *SHARED_GRAPHS}
        return any(
            row.verdict == "fail"
            or (strict and row.verdict == "ambiguous")
            or (strict and row.verdict == "unverified" and name in required)
            for name, row in rows.items()
        )
