"""What building an export and maintaining one have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.adapters.formats.detect import read_adapter
from lora_export.base.errors import LatencyError, ParityError, UsageError
from lora_export.base.manifest import Manifest, check_adapter_name
from lora_export.exports.plan import count_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.graph.tasks import Task
    from lora_export.recipe import AdapterSpec

__all__ = ["Outcome", "labels_for", "read_spec"]


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        output: The export directory.
        manifest: Its manifest.
        reports: The reports that were written, by name.
    """

    output: Path
    manifest: Manifest
    reports: dict[str, Any] = field(default_factory=dict)

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0, or the code of the gate that failed; `strict` fails what is ambiguous."""
        bad = {"fail", "ambiguous"} if strict else {"fail"}
        for report, error in (("parity", ParityError), ("latency", LatencyError)):
            rows = self.reports.get(report, {}).get("graphs", {}).values()
            if any(row["verdict"] in bad for row in rows):
                return error.exit_code
        return 0


def read_spec(spec: AdapterSpec, folder: Path) -> Adapter:
    """Read the adapter of a recipe; relative paths are taken from `folder`."""
    path = folder / Path(spec.source).expanduser()
    name = check_adapter_name(spec.name or path.resolve().name)
    return read_adapter(path, name=name, source=spec.source)


def labels_for(
    adapter: Adapter, task: Task, labels: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Return the labels, required to be as many as the adapter's head is wide."""
    if labels is None:
        return None
    width = count_labels(task, {"num_labels": len(labels)}, [adapter])
    if width is not None and width != len(labels):
        msg = f"{len(labels)} labels are given, but adapter {adapter.source!r} has {width}"
        raise UsageError(msg, hint="Give as many names as the head has outputs, in their order.")
    return tuple(labels)
