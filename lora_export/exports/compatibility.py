"""Checks that an adapter fits the task and the base of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_export.adapters.rows_without_bias import refuse_rows_without_bias
from lora_export.core.errors import AdapterError, UsageError
from lora_export.core.modes import BASE_GRAPH
from lora_export.core.name_conversions import new_name
from lora_export.core.parameters import CAST, TRANSPOSE
from lora_export.core.tensors import MemoryTensor, nbytes, read_all
from lora_export.exports.plan import match_base
from lora_export.exports.stored_values import stored_values
from lora_export.graph.spec import tasks
from lora_export.weights.base_match import require_known_base
from lora_export.weights.residual import require_residual_base

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Resolved
    from lora_export.core.manifest import Manifest
    from lora_export.core.tensors import Tensor
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["require_base", "require_task"]


def require_task(manifest: Manifest, adapter: Adapter) -> None:
    """Require that an adapter was trained for the export's task; features are taken from any.

    Raises:
        UsageError: It was trained for another.
    """
    task = tasks.by_name(manifest.base.task)
    kind = adapter.task_type
    trained = [row.name for row in tasks.TASKS.values() if kind and row.peft_type == kind]
    if trained and task.name not in trained and not task.features:
        msg = (
            f"adapter {adapter.source!r} was trained for {trained[0]}, "
            f"the export is for {task.name}"
        )
        raise UsageError(msg, hint="Export the base for that task, and add it there.")


def require_base(
    export_dir: Path,
    manifest: Manifest,
    resolved: Resolved,
    originals: Iterable[Adapter],
    checkpoint: Checkpoint | None,
) -> None:
    """Require that the export's base is the one that an adapter was made for, as far as it tells.

    An adapter that records the export's own fingerprint is believed. Else the tensors that it
    changes are compared: with `checkpoint`, or with those that the export holds uncast.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        resolved: The adapter; combined, where it was.
        originals: The adapters that it was read from.
        checkpoint: The base, where it is at hand; known to be the export's.

    Raises:
        AdapterError: It records another base.
        UnsupportedError: Its initialisation changed its base, and this is not the changed one; or
            it trains rows of a head whose bias PEFT leaves out.
    """
    base, prefix = manifest.base.source, manifest.base.prefix
    stored = stored_values(export_dir, manifest)
    for adapter in originals:
        known = adapter.known_base
        if known is None or known.fingerprint in _fingerprints(manifest):
            continue
        if checkpoint is not None:
            require_known_base(adapter, checkpoint.of_adapters.stored, prefix, base)
            continue
        held = _as_in_checkpoint(manifest, stored, set(known.tensors))
        if held is None:
            msg = (
                f"adapter {adapter.source!r} was made for another base than this export: for "
                f"{known.fingerprint[:16]}…, not {manifest.base.fingerprint[:16]}…"
            )
            raise AdapterError(
                msg,
                hint="The export holds them cast or stacked: to have the tensors themselves "
                "compared, add --base.",
            )
        require_known_base(adapter, held, prefix, base)
    refuse_rows_without_bias(resolved, stored)
    if checkpoint is None:
        require_residual_base(resolved, stored, base, stored=True)
    elif resolved.adapter.residual is not None:
        parameters = [update.parameter for update in resolved.updates]
        sources = match_base(
            parameters, prefix, checkpoint.tensors, conversions=manifest.base.conversions
        ).sources
        require_residual_base(resolved, sources, base)


def _fingerprints(manifest: Manifest) -> set[str]:
    """Return the fingerprints of the base, and of the quantized one that it is the original of."""
    own = manifest.base
    return {own.fingerprint, *([] if own.trained_on is None else [own.trained_on.fingerprint])}


def _as_in_checkpoint(
    manifest: Manifest, stored: Mapping[str, Tensor], wanted: set[str]
) -> dict[str, Tensor] | None:
    """Return the base's tensors in the checkpoint's layout; None where one that counts was cast.

    None as well where one is a part of another in the export. Those of `wanted` that are stored
    transposed are turned back, one at a time.
    """
    held: dict[str, Tensor] = {}
    rules = manifest.base.conversions
    if any(new_name(name, rules).converter is not None for name in wanted):
        return None
    for name, uses in manifest.parameters.items():
        use = next((use for use in uses if use.graph == BASE_GRAPH), None)
        tensor = stored.get(use.initializer) if use is not None else None
        if use is None or tensor is None:
            continue
        counts = any(each == name or each.endswith(f".{name}") or name.endswith(f".{each}")
                     for each in wanted)  # fmt: skip
        if not counts:
            continue
        if CAST in use.transform:
            return None
        turned = TRANSPOSE in use.transform
        held[name] = _Turned(tensor) if turned else tensor
    return held


class _Turned:
    """The transpose of a stored matrix, in memory from its first byte to its last being read."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._values: MemoryTensor | None = None
        self.name, self.dtype = tensor.name, tensor.dtype
        self.shape = tensor.shape[::-1]

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        if self._values is None:
            turned = np.ascontiguousarray(read_all(self._tensor).T)
            self._values = MemoryTensor(self.name, self.dtype, turned)
        self._values.read_into(buffer, offset_bytes)
        if offset_bytes + len(buffer) == nbytes(self._tensor):
            self._values = None
