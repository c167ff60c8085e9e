"""An adapter, described from its config and header."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lora_export.adapters.zero_updates import trained_items, zero_parameters
from lora_export.commands.inspect.counts import bytes_by_dtype
from lora_export.core.tensors import nbytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter

__all__ = ["AdapterReport", "ModuleGroup", "adapter_report"]


@dataclass(frozen=True)
class ModuleGroup:
    """Modules that differ in their layer number only: `pattern` has ``*`` in its place."""

    pattern: str
    count: int
    ranks: tuple[int, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True)
class AdapterReport:
    """An adapter; `ranks` and `scales` count modules, `saved` holds shapes.

    `residual` names the initialisation that changed its base, `base_fingerprint` the base that it
    records. `method` is PEFT's ``peft_type``; a module of another than LoRA has neither rank nor
    scale. `zero_updates` names the parameters whose update is zero for every base, and `updates`
    counts all that are updated.
    """

    kind: str
    path: str
    format: str
    base: str | None
    task_type: str | None
    ranks: Mapping[int, int]
    scales: Mapping[float, int]
    scale_rule: str | None
    modules: tuple[ModuleGroup, ...]
    saved: Mapping[str, tuple[int, ...]]
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    sha256: str
    residual: str | None = None
    base_fingerprint: str | None = None
    updates: int = 0
    zero_updates: tuple[str, ...] = ()
    method: str = "LORA"


def adapter_report(adapter: Adapter, path: Path) -> AdapterReport:
    """Describe `adapter`, which was read from `path`."""
    tensors = adapter.tensors
    trained = trained_items(adapter.items)
    rule = None
    if adapter.format == "peft":
        rule = "alpha/sqrt(r)" if adapter.config.get("use_rslora") else "alpha/r"
    return AdapterReport(
        kind="adapter",
        path=str(path),
        format=adapter.format,
        base=adapter.base_name,
        task_type=adapter.task_type,
        ranks=dict(Counter(update.rank for update in adapter.low_rank).most_common()),
        scales=dict(Counter(update.scale for update in adapter.low_rank).most_common()),
        scale_rule=rule,
        modules=_groups(adapter),
        saved={saved.parameter: saved.tensor.shape for saved in adapter.saved},
        tensors=adapter.tensor_count,
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        bytes=sum(map(nbytes, tensors)),
        dtypes=bytes_by_dtype(tensors),
        sha256=adapter.sha256,
        residual=adapter.residual,
        base_fingerprint=adapter.known_base.fingerprint if adapter.known_base else None,
        updates=len(trained),
        zero_updates=zero_parameters(trained),
        method=adapter.method,
    )


def _groups(adapter: Adapter) -> tuple[ModuleGroup, ...]:
    by_pattern: dict[str, list[tuple[int, float]]] = {}
    for update in adapter.low_rank:
        path = update.module if update.name is None else update.parameter
        pattern = _pattern(path)
        by_pattern.setdefault(pattern, []).append((update.rank, update.scale))
    groups = [
        ModuleGroup(
            pattern,
            len(rows),
            tuple(sorted({rank for rank, _ in rows})),
            tuple(sorted({scale for _, scale in rows})),
        )
        for pattern, rows in by_pattern.items()
    ]
    computed = Counter(
        _pattern(update.parameter.removesuffix(".weight"))
        for update in adapter.computed
        if not update.optional
    )
    return (*groups, *(ModuleGroup(path, count, (), ()) for path, count in computed.items()))


def _pattern(path: str) -> str:
    """Return a path with ``*`` in place of its numbers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)
