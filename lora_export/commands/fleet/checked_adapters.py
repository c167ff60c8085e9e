"""The adapters that a graph can be made for: read, and compared with the headers of the base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.adapters.early_checks import refuse_misfit
from lora_export.adapters.read_spec import read_spec
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import LoraExportError
from lora_export.weights.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.core.progress import Progress

__all__ = ["fitting_adapters", "slots_of"]


def fitting_adapters(
    base: str, lines: Sequence[dict[str, Any]], progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, LoraExportError]]:
    """Return the lines of the adapters that can be read and fit, and the errors of the others.

    A row of its own says of each of the others what is wrong with it; here they must not stop the
    graph that the rest share.

    Args:
        base: The base checkpoint.
        lines: The adapters, as in a recipe.
        progress: Told who is left out.

    Raises:
        LoraExportError: The base cannot be read.
    """
    if not lines:
        return [], {}
    checkpoint = open_checkpoint(Path(base))
    kept: list[dict[str, Any]] = []
    left_out: dict[str, LoraExportError] = {}
    for line in lines:
        spec = AdapterSpec.model_validate(line)
        try:
            adapter = read_spec(spec, base_config=checkpoint.config)
            refuse_misfit(adapter, checkpoint.tensors, checkpoint.config, drop=spec.drop)
        except LoraExportError as error:
            progress.note(f"{line['name']} is left out: {error.message}")
            left_out[str(line["name"])] = error
        else:
            kept.append(dict(line))
    return kept, left_out


def slots_of(line: dict[str, Any]) -> list[Any]:
    """Return what a graph that adapters share must have for an adapter, whatever its values are.

    These are the modules with low-rank updates and the parameters that it brings, with their
    shapes. An adapter that cannot be read needs nothing: its own row says what is wrong with it.
    """
    try:
        adapter = read_spec(AdapterSpec.model_validate(line))
    except LoraExportError:
        return []
    return [
        sorted([each.module, each.magnitude is not None] for each in adapter.low_rank),
        sorted([each.parameter, list(each.tensor.shape)] for each in adapter.saved),
        sorted([each.parameter, list(each.tensor.shape)] for each in adapter.added),
        sorted(each.parameter for each in adapter.rows),
        sorted(each.parameter for each in adapter.computed),
        sorted(line.get("drop") or []),
    ]
