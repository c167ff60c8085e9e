"""The tensors that a merged adapter changes, as they are written: from whose values, in which form.

checkpoint's value + s·B A      where the export holds it cast or quantized, and it is at hand
export's value + s·B A          where it holds it as it was, or cast and no checkpoint is given
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.core.parameters import CAST
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.exports.plan import match_base
from lora_export.exports.stored_values import method_of
from lora_export.weights.parameter_entries import entries_of
from lora_export.weights.stream import merged_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.adapters.resolve import Resolved, Update
    from lora_export.core.manifest import Manifest
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor
    from lora_export.weights.checkpoint import Checkpoint
    from lora_export.weights.fidelity import FidelityMeter
    from lora_export.weights.quantized_entries import Moments
    from lora_export.weights.stream import Entry, Observer

__all__ = ["ORIGIN_CHECKPOINT", "ORIGIN_EXPORT", "merged_entries"]

ORIGIN_CHECKPOINT: Final = "checkpoint"
ORIGIN_EXPORT: Final = "export"


def merged_entries(
    manifest: Manifest,
    resolved: Resolved,
    base_tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint | None,
    meters: Mapping[str, tuple[str, FidelityMeter]],
    *,
    onto_integers: bool = False,
    moments: Moments | None = None,
) -> tuple[list[Entry], str]:
    """Return the entries to write, and whose values they use: the checkpoint's or the export's.

    Args:
        manifest: The manifest of the export.
        resolved: The adapter.
        base_tensors: The values that the export holds.
        checkpoint: The base, where it is at hand.
        meters: Of the parameters in half precision, what measures their updates.
        onto_integers: Whether an update may be added to what quantized weights stand for.
        moments: See `entries_of`.

    Raises:
        UnsupportedError: It may not, and there is no checkpoint.
        ExportDirectoryError: The export lacks a tensor.
    """
    cast = {
        use.initializer
        for uses in manifest.parameters.values()
        for use in uses
        if CAST in use.transform and DTYPES[use.dtype].floating
    }
    changed = [
        update.parameter
        for update in resolved.updates
        if update.needs_base and not update.padded  # others may have another shape than the base's
    ]
    sources: Mapping[str, Tensor] = {}
    if checkpoint is not None and any(parameter.name in cast for parameter in changed):
        sources = match_base(
            [parameter for parameter in changed if parameter.name in cast],
            manifest.base.prefix,
            checkpoint.tensors,
            conversions=manifest.base.conversions,
        ).sources
    entries: list[Entry] = []
    origin = ORIGIN_CHECKPOINT
    for update in resolved.updates:
        parameter = update.parameter
        _, meter = meters.get(parameter.name, ("", None))
        if parameter.name in sources:
            source = sources[parameter.name]
            value = _value(update, source, base_is_stored=False, observe=meter)
            entries += entries_of(parameter, value, method=method_of(manifest), moments=moments)
            continue
        if parameter.quantized is not None and update.needs_base and not onto_integers:
            raise _needs_checkpoint(resolved, parameter)
        if update.needs_base and parameter.name not in base_tensors:
            msg = f"{BASE_WEIGHTS} has no tensor {parameter.name!r}"
            raise ExportDirectoryError(msg, hint="The export is damaged; export again.")
        if parameter.name in cast and update.needs_base and not update.padded:
            origin = ORIGIN_EXPORT
        stored = base_tensors.get(parameter.name)
        value = _value(update, stored, base_is_stored=True, observe=meter)
        entries += entries_of(parameter, value, method=method_of(manifest), moments=moments)
    return entries, origin


def _value(
    update: Update,
    base: Tensor | None,
    *,
    base_is_stored: bool,
    observe: Observer | None,
) -> Callable[[Parameter], Entry]:
    """Return a function that returns the merged value in the dtype of a parameter."""

    def value(parameter: Parameter) -> Entry:
        own = update if parameter == update.parameter else replace(update, parameter=parameter)
        return merged_entry(own, base, base_is_stored=base_is_stored, observe=observe)

    return value


def _needs_checkpoint(resolved: Resolved, parameter: Parameter) -> UnsupportedError:
    """Return the error for a merge into a value that is quantized already.

    Small updates vanish where they are added to values on the grid of the integers.
    """
    msg = (
        f"adapter {resolved.adapter.name!r} changes {parameter.name!r}, which the export holds "
        "quantized: it is merged into the base's own values"
    )
    return UnsupportedError(msg, hint="Give the base: --base BASE")
