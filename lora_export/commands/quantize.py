"""``quantize``: a quantized export made of a float one, its adapters included, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.commands.build_quantized import (
    tell_kept,
    tell_without_blocks,
)
from lora_export.commands.measured_inputs import measure_of
from lora_export.commands.outcome import Outcome
from lora_export.commands.quantize_choice import choice_of, with_int8_blocks
from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import publish_folder, staging_folder
from lora_export.core.manifest import read_manifest
from lora_export.core.progress import Progress, Silent
from lora_export.exports.integrity_checks import require_intact
from lora_export.exports.quantize_export import quantize_export
from lora_export.exports.stored_values import parameters_of
from lora_export.graph.quantize.opset import OLDEST_RAISED
from lora_export.report.refresh_report import refresh_report

if TYPE_CHECKING:
    from lora_export.commands.recipe_sections import QuantizeSpec

__all__ = ["quantize"]


def quantize(
    export: str | Path,
    output: str | Path,
    spec: QuantizeSpec,
    *,
    progress: Progress | None = None,
) -> Outcome:
    """Write a quantized export of a float one, with all its adapters.

    What is quantized are the values that the export holds; nothing is merged again, and nothing
    in the new export is verified yet. Engines, reports and golden outputs are not taken over.

    Args:
        export: The float export; it stays as it is.
        output: The new export, which must not exist.
        spec: What is quantized, and how.
        progress: Told about bytes, and which matrices stay as they are.

    Raises:
        LoraExportError: See the class of the error; nothing half-written is left.
    """
    source, target, tell = Path(export), Path(output), progress or Silent()
    manifest = read_manifest(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        msg = f"{str(target)!r} exists"
        raise ExportDirectoryError(msg, hint="Choose another --out; nothing was changed.")
    require_intact(source, manifest)
    if manifest.base_graph.opset >= OLDEST_RAISED:
        spec = with_int8_blocks(spec)
    choice = choice_of(spec)
    with staging_folder(target.parent, target.name) as staging:
        made = quantize_export(
            source, manifest, staging, choice, tell, measure=measure_of(choice.method, tell)
        )
        tell_kept(made.kept, tell)
        tell_without_blocks(choice, parameters_of(made.manifest), tell)
        updated = refresh_report(staging)
        publish_folder(staging, target, hint="Choose another --out.")
    return Outcome(target, updated)
