"""The adapters of a recipe as they are merged: scaled, and combined into one where it says so."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.adapters.combine import Combination, combine, scaled, without
from lora_export.adapters.formats.detect import read_adapter
from lora_export.base.errors import AdapterError, UsageError
from lora_export.base.manifest import CombinedRecord, PartRecord, check_adapter_name
from lora_export.recipe import AdapterSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.base.manifest import AdapterRecord
    from lora_export.recipe import CombineSpec

__all__ = ["Given", "again", "read_spec", "read_specs", "recorded_source"]


@dataclass(frozen=True)
class Given:
    """An adapter to merge.

    Attributes:
        adapter: The adapter, scaled; or what several were combined into.
        spec: Its line in the recipe; for a combined one, what is left to do: nothing to drop.
        combination: How it was combined.
        parts: What it was combined of, each with its weight and what was dropped from it.
    """

    adapter: Adapter
    spec: AdapterSpec
    combination: Combination | None = None
    parts: tuple[tuple[Adapter, float, tuple[str, ...]], ...] = ()

    def record(self, output: Path) -> CombinedRecord | None:
        """Return what the manifest says of the parts, their places seen from `output`."""
        how = self.combination
        if how is None:
            return None
        return CombinedRecord(
            method=how.method,
            density=how.density,
            rank=how.rank,
            majority_sign_method=how.majority_sign_method,
            seed=how.seed,
            parts=[
                PartRecord(
                    name=part.name,
                    source=recorded_source(part.folder, output),
                    format=part.format,
                    sha256=part.sha256,
                    weight=weight,
                    scale=part.factor,
                    dropped=list(dropped),
                )
                for part, weight, dropped in self.parts
            ],
        )


def read_spec(spec: AdapterSpec, folder: Path) -> Adapter:
    """Read the adapter of a recipe, scaled; relative paths are taken from `folder`."""
    path = folder / Path(spec.source).expanduser()
    name = check_adapter_name(spec.name or path.resolve().name)
    return scaled(read_adapter(path, name=name, source=spec.source), spec.scale)


def read_specs(
    specs: Sequence[AdapterSpec], folder: Path, combination: CombineSpec | None
) -> tuple[Given, ...]:
    """Read the adapters of a recipe, and combine them if `combination` says so.

    Raises:
        AdapterError: Two have one name, one is damaged, or they cannot be combined.
        UnsupportedError: One is of a kind that cannot be read or combined.
        UsageError: The combination contradicts itself or the adapters.
    """
    adapters = [read_spec(spec, folder) for spec in specs]
    names = [adapter.name for adapter in adapters]
    if twice := next((name for name in names if names.count(name) > 1), None):
        msg = f"two adapters are called {twice!r}"
        raise AdapterError(msg, hint="Name them apart: --adapter NAME=PATH.")
    if combination is None:
        return tuple(map(Given, adapters, specs))
    how = Combination(
        method=combination.method,
        weights=tuple(combination.weights) if combination.weights is not None else None,
        density=combination.density,
        rank=combination.rank,
        majority_sign_method=combination.majority_sign_method,
        seed=combination.seed,
    )
    drops = [tuple(spec.drop) for spec in specs]
    kept = [without(adapter, drop) for adapter, drop in zip(adapters, drops, strict=True)]
    result = combine(kept, how, name=_combined_name(combination.name, names))
    labels = next((spec.labels for spec in specs if spec.labels), None)
    weights = how.weights or (1.0,) * len(kept)
    return (
        Given(
            result,
            AdapterSpec(name=result.name, source=result.source, labels=labels),
            how,
            tuple(zip(adapters, weights, drops, strict=True)),
        ),
    )


def _combined_name(wanted: str | None, names: Sequence[str]) -> str:
    try:
        return check_adapter_name(wanted or "-".join(names))
    except AdapterError as error:
        raise UsageError(error.message, hint="Choose one: --combine-name NAME") from error


def again(name: str, record: AdapterRecord, locate: Callable[[str, str], Path]) -> Adapter:
    """Read an adapter of an export once more, scaled and combined as it was.

    Args:
        name: Its name.
        record: What the manifest says of it.
        locate: Returns the folder of an adapter, or of a part, by its name and recorded source.
    """
    made = record.combined
    if made is None:
        folder = locate(name, record.source)
        return scaled(
            read_adapter(folder, name=name, source=str(folder)),
            1.0 if record.scale is None else record.scale,
        )
    parts: list[Adapter] = []
    for part in made.parts:
        folder = locate(part.name, part.source)
        read = scaled(read_adapter(folder, name=part.name, source=str(folder)), part.scale)
        parts.append(without(read, part.dropped))
    how = Combination(
        made.method,
        tuple(part.weight for part in made.parts),
        made.density,
        made.rank,
        made.majority_sign_method,
        made.seed,
    )
    return combine(parts, how, name=name)


def recorded_source(folder: Path, output: Path) -> str:
    """Return where `folder` is, seen from the export: a tree that is moved keeps its links."""
    return os.path.relpath(folder.resolve(), output.resolve())
