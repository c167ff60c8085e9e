"""The adapters of a recipe: read, scaled, and combined into one where the recipe says so."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.adapters.combine import Combination, combine, default_rank, drop_matching
from lora_export.adapters.read_spec import read_spec
from lora_export.core.adapter_names import check_adapter_name
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.combined_record import CombinedRecord, PartRecord
from lora_export.core.errors import AdapterError, UsageError
from lora_export.core.hub import hub_id_of
from lora_export.ondevice.file_opening import real_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Resolved
    from lora_export.commands.recipe import CombineSpec
    from lora_export.core.manifest import AdapterRecord
    from lora_export.core.progress import Progress

__all__ = [
    "LoadedAdapter",
    "notes_on_resolved",
    "read_specs",
    "recorded_source",
    "reload_adapter",
]


@dataclass(frozen=True)
class LoadedAdapter:
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

    @property
    def originals(self) -> tuple[Adapter, ...]:
        """The adapters as they were read: its parts, or itself."""
        return tuple(part for part, _, _ in self.parts) or (self.adapter,)

    def record(self, output: Path) -> CombinedRecord | None:
        """Return the manifest's records of the parts, with paths relative to `output`."""
        how = self.combination
        if how is None:
            return None
        return CombinedRecord(
            method=how.method,
            density=how.density,
            rank=how.rank,
            majority_sign_method=how.majority_sign_method,
            seed=how.seed,
            head_from=how.head_from,
            parts=[
                PartRecord(
                    name=part.name,
                    source=recorded_source(part.folder, output),
                    format=part.format,
                    sha256=part.sha256,
                    weight=weight,
                    scale=part.factor,
                    dropped=list(dropped),
                    alpha=part.alpha,
                    enable_lora=None if part.enable_lora is None else list(part.enable_lora),
                )
                for part, weight, dropped in self.parts
            ],
        )


def read_specs(
    specs: Sequence[AdapterSpec],
    folder: Path,
    combination: CombineSpec | None,
    *,
    base_config: Mapping[str, Any] | None = None,
) -> tuple[LoadedAdapter, ...]:
    """Read the adapters of a recipe, and combine them if `combination` says so.

    Raises:
        AdapterError: Two have one name, one is damaged, or they cannot be combined.
        UnsupportedError: One is of a kind that cannot be read or combined.
        UsageError: The combination contradicts itself or the adapters.
    """
    adapters = [read_spec(spec, folder, base_config=base_config) for spec in specs]
    names = [adapter.name for adapter in adapters]
    if twice := next((name for name in names if names.count(name) > 1), None):
        msg = f"two adapters are called {twice!r}"
        raise AdapterError(msg, hint="Give each a name of its own: --adapter NAME=PATH.")
    if combination is None:
        return tuple(map(LoadedAdapter, adapters, specs))
    drops = [tuple(spec.drop) for spec in specs]
    kept = [drop_matching(adapter, drop) for adapter, drop in zip(adapters, drops, strict=True)]
    given_rank = combination.rank
    how = Combination(
        method=combination.method,
        weights=tuple(combination.weights) if combination.weights is not None else None,
        density=combination.density,
        rank=default_rank(combination.method, kept) if given_rank is None else given_rank,
        majority_sign_method=combination.majority_sign_method,
        seed=combination.seed,
        head_from=combination.head_from,
    )
    result = combine(kept, how, name=_combined_name(combination.name, names))
    labels = _combined_labels(specs, names, how.head_from)
    weights = how.weights or (1.0,) * len(kept)
    return (
        LoadedAdapter(
            result,
            AdapterSpec(name=result.name, source=result.source, labels=labels),
            how,
            tuple(zip(adapters, weights, drops, strict=True)),
        ),
    )


def _combined_labels(
    specs: Sequence[AdapterSpec], names: Sequence[str], head_from: str | None
) -> list[str] | None:
    """Return the labels that are given for the adapter whose head is taken."""
    rows = zip(specs, names, strict=True)
    given = [spec.labels for spec, name in rows if head_from in {None, name}]
    return next((labels for labels in given if labels), None)


def _combined_name(wanted: str | None, names: Sequence[str]) -> str:
    try:
        return check_adapter_name(wanted or "-".join(names))
    except AdapterError as error:
        raise UsageError(error.message, hint="Choose one: --combine-name NAME") from error


def reload_adapter(
    name: str,
    record: AdapterRecord,
    locate: Callable[[str, AdapterRecord | PartRecord], AdapterSpec],
    *,
    base_config: Mapping[str, Any] | None = None,
) -> Adapter:
    """Read an adapter of an export once more, scaled and combined as it was.

    Args:
        name: Its name.
        record: What the manifest says of it.
        locate: Returns where an adapter, or a part, is, by its name and record; what the user says
            of its alpha there goes before what is recorded.
        base_config: The base's ``config.json``.
    """

    def read(own_name: str, own: AdapterRecord | PartRecord) -> Adapter:
        scale = 1.0 if own.scale is None else own.scale
        spec = _as_recorded(locate(own_name, own), own)
        spec = spec.model_copy(update={"name": own_name, "scale": scale})
        return read_spec(spec, Path(), base_config=base_config)

    made = record.combined
    if made is None:
        return read(name, record)
    parts = [drop_matching(read(p.name, p), p.dropped) for p in made.parts]
    how = Combination(
        made.method,
        tuple(part.weight for part in made.parts),
        made.density,
        made.rank,
        made.majority_sign_method,
        made.seed,
        made.head_from,
    )
    return combine(parts, how, name=name)


def _as_recorded(spec: AdapterSpec, own: AdapterRecord | PartRecord) -> AdapterSpec:
    """Return `spec` with the recorded settings that it leaves out, if it is of that format."""
    said = own.alpha is not None or own.enable_lora is not None
    if not said or spec.format not in {None, own.format}:
        return spec
    return spec.model_copy(
        update={
            "format": own.format,
            "alpha": own.alpha if spec.alpha is None else spec.alpha,
            "enable_lora": spec.enable_lora or own.enable_lora,
        }
    )


def notes_on_resolved(resolved: Sequence[Resolved], progress: Progress) -> tuple[str, ...]:
    """Return the notes on adapters that are resolved against a model, and report them.

    That is a changed number of tokens, and changes to weights that the graph does not read.
    """
    notes = (
        *(
            f"adapter {each.adapter.name!r} {each.vocabulary.description} tokens"
            for each in resolved
            if each.vocabulary is not None
        ),
        *(
            f"adapter {each.adapter.name!r} changes {', '.join(map(repr, each.unread))}, which the "
            "graph does not read: the change is left out, and PEFT computes the same without it"
            for each in resolved
            if each.unread
        ),
    )
    for note in notes:
        progress.note(f"note: {note}")
    return notes


def recorded_source(folder: Path, output: Path) -> str:
    """Return where `folder` is: its id on the hub, or its path seen from the export.

    A tree that is moved keeps its links; what came from the hub is named with its commit.
    """
    return hub_id_of(folder) or os.path.relpath(real_path(folder), real_path(output))
