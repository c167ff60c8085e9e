"""An adapter that is to be added to an export, of any mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_export.exports.adapter_companions import AdapterCompanions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.resolve import Resolved
    from lora_export.core.combined_record import CombinedRecord

__all__ = ["NewAdapter"]


@dataclass(frozen=True)
class NewAdapter:
    """An adapter to add to an export.

    Attributes:
        resolved: The adapter, resolved against the export's parameters.
        source: Where it is, as the manifest records it.
        labels: Names of the head's classes.
        combined: What it was made of, where it was.
        companions: What comes with it besides its tensors.
    """

    resolved: Resolved
    source: str
    labels: Sequence[str] | None = None
    combined: CombinedRecord | None = None
    companions: AdapterCompanions = field(default_factory=AdapterCompanions)

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.resolved.adapter.name
