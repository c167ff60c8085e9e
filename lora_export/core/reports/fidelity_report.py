"""``reports/fidelity.json``: what the stored dtype kept of each adapter's delta.

    FidelityReport
    ├── environment            where it was merged; `EnvironmentRow`
    └── graphs {name → row}    ‖(W − W0) − ΔW‖ / ‖ΔW‖ of the adapter and of each of its tensors

See `lora_export.weights.fidelity`, which measures it.
"""

from __future__ import annotations

from pydantic import Field

from lora_export.core.reports.report_model import EnvironmentRow, ReportModel

__all__ = ["FidelityReport", "FidelityRow", "TensorFidelity"]


class TensorFidelity(ReportModel):
    """One merged tensor.

    Attributes:
        dtype: The dtype that it is stored in.
        relative_error: ‖(W − W0) − ΔW‖ / ‖ΔW‖.
        unmoved_share: The share of entries that the merge left as they were.
    """

    dtype: str
    relative_error: float
    unmoved_share: float


class FidelityRow(ReportModel):
    """All merged tensors of one adapter.

    Attributes:
        relative_error: ‖(W − W0) − ΔW‖ / ‖ΔW‖ over all of them.
        unmoved_share: The share of entries that the merge left as they were.
        lossy: The tensors that lost too much of the delta, the worst first.
        tensors: Each of them.
    """

    relative_error: float
    unmoved_share: float
    lossy: list[str] = Field(default_factory=list)
    tensors: dict[str, TensorFidelity]


class FidelityReport(ReportModel):
    """The whole document.

    Attributes:
        environment: Where it was merged.
        graphs: The rows by adapter.
    """

    environment: EnvironmentRow = EnvironmentRow()
    graphs: dict[str, FidelityRow] = Field(default_factory=dict)
