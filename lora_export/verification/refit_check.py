"""A refitted engine compared with the golden outputs of its adapter, before its plan is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.core.errors import ParityError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.judge.golden_checks import check_graph
from lora_export.ondevice.judge.golden_files import read_golden
from lora_export.verification.golden import reading_of
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import with_buffers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.graph_runner import GraphRunner

__all__ = ["refit_check"]


def refit_check(
    export_dir: Path, manifest: Manifest, name: str, tell: Callable[[str], None]
) -> Callable[[GraphRunner], None] | None:
    """Return a function that requires of a refitted engine that it computes the adapter.

    Its outputs are compared with the golden outputs that the reference gave when the adapter's
    graph was verified, by the tolerance of the export's dtype. None where the export has none of
    it.

    Args:
        export_dir: The export.
        manifest: Its manifest.
        name: The adapter, or the base.
        tell: Told that it was compared, or that its profiles do not cover the golden inputs.

    The function raises `ParityError` where the engine computes something else.
    """
    record = manifest.graphs.get(name)
    if record is None or record.golden is None or record.encoder is not None:
        return None
    reading = reading_of(export_dir, manifest, record)
    stored = read_golden(resolve_inside(export_dir, record.golden))
    signature = feeding_of(export_dir, record).signature
    cases = [with_buffers(each, signature) for each in stored.cases]
    golden = replace(stored, cases=cases)

    def check(graph: GraphRunner) -> None:
        try:
            verdict, row = check_graph(graph, golden, reading, dtype=manifest.base.dtype)
        except DeviceError as error:
            if error.exit_code != UsageError.exit_code:
                raise
            tell(f"note: the refitted engine was not compared: {error.message}")
            return
        if verdict == "fail":
            reason = row.get("reason") or "its outputs differ from the golden outputs"
            msg = f"the refitted engine does not compute {name!r}: {reason}"
            raise ParityError(msg, hint="Nothing was written. Build an engine of the adapter.")
        tell(f"the refitted engine computes {name!r}: compared with its golden outputs")

    return check
