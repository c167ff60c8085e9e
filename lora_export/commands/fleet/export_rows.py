"""The rows of one export of a plan: its base, its adapters, what is made for each target.

export:BASE/VARIANT             the base of a variant, once
adapter:BASE/VARIANT/NAME       an adapter added to it, verified, measured; needs the export
engine:BASE/VARIANT[/NAME]@T    a TensorRT engine; needs the adapter, or the export
bundle:BASE/VARIANT@T           a bundle for a device, after all adapters of the export
triton:BASE/VARIANT             its models in a Triton repository, after all adapters too
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lora_export.commands.fleet.checked_adapters import slots_of
from lora_export.commands.fleet.estimates import estimate_of
from lora_export.commands.fleet.spec import ADAPTER_KEYS
from lora_export.commands.fleet.tool_versions import tool_versions
from lora_export.commands.recipe import make_recipe
from lora_export.core import targets
from lora_export.core.modes import SHARED_MODES, Mode
from lora_export.fleet.fleet_plan import Row, key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from lora_export.commands.fleet.inputs import FleetAdapter
    from lora_export.commands.fleet.spec import FleetSpec, TritonDeployment
    from lora_export.fleet.content import ContentHashes
    from lora_export.fleet.row_place import Kind

__all__ = ["Member", "PlannedExport", "rows_of"]

_QUIET: Final = {"bundle": {"enabled": False}}

Member: TypeAlias = "tuple[FleetAdapter, dict[str, Any]]"
"""An adapter of an export, with its settings: those of the base and the variant, and its own."""


@dataclass
class PlannedExport:
    """An export of the plan: a base in a variant, with the adapters that go into it.

    Attributes:
        base: The name of the base.
        variant: The name of the variant.
        base_path: The base.
        base_content: The hash of its content.
        settings: The keys of a recipe that decide what the export is.
        verify: Whether the base is verified.
        adapters: The adapters.
    """

    base: str
    variant: str
    base_path: Path
    base_content: str
    settings: dict[str, Any]
    verify: bool = True
    adapters: list[Member] = field(default_factory=list)

    @property
    def name(self) -> str:
        """``BASE/VARIANT``."""
        return f"{self.base}/{self.variant}"

    @property
    def mode(self) -> Mode:
        """The way in which its graphs take adapters."""
        return Mode(self.settings.get("mode", Mode.MERGED))

    @property
    def folder(self) -> str:
        """Its place in the store."""
        return f"exports/{self.name}"


def rows_of(spec: FleetSpec, export: PlannedExport, hashes: ContentHashes) -> Iterator[Row]:
    """Yield the rows of an export, each behind those that it waits for.

    Args:
        spec: The fleet.
        export: The export.
        hashes: Returns the content of the data sets that rows read.
    """
    target = min(spec.targets, key=lambda name: targets.by_name(name).opset)
    common = {**export.settings, "base": str(export.base_path), "targets": [target]}
    first = _export_row(spec, export, common)
    yield first
    adapters: list[Row] = []
    batched = export.mode is Mode.BATCHED
    for member in export.adapters:
        row = _adapter_row(spec, export, common, member, first, hashes=hashes)
        if batched and adapters:  # rows of the stacks have the plan's order
            row = row.model_copy(update={"after": (adapters[-1].id,)})
        adapters.append(row)
        yield row
    for name in spec.targets:
        yield from _target_rows(export, name, first, adapters)
    if spec.deploy.triton is not None:
        yield _triton_row(spec, spec.deploy.triton, export, first, adapters)


def _export_row(spec: FleetSpec, export: PlannedExport, common: dict[str, Any]) -> Row:
    """Return the row of the base; graphs that adapters share are made for all of them."""
    shared = export.mode in SHARED_MODES
    lines = [_line(found, settings) for found, settings in export.adapters]
    recipe = {**common, "output": export.folder, **_QUIET, "latency": {"enabled": False}}
    recipe["verify"] = {"enabled": export.verify}
    make_recipe({**recipe, "adapters": lines}, folder=spec.folder)
    key = key_of(
        kind="export",
        versions=tool_versions(),
        base=export.base_content,
        recipe={**_without_places(recipe), "verify": None},
        slots=_distinct(slots_of(line) for line in lines) if shared else [],
    )
    return _row(
        "export",
        export,
        key=key,
        artifact=export.folder,
        inputs=_contents(export, []),
        job={"recipe": recipe, "adapters": lines, "shared": shared},
        estimate=estimate_of("export", export.base_path, export.settings),
    )


def _adapter_row(
    spec: FleetSpec,
    export: PlannedExport,
    common: dict[str, Any],
    member: Member,
    first: Row,
    *,
    hashes: ContentHashes,
) -> Row:
    """Return the row of an adapter."""
    found, settings = member
    line = _line(found, settings)
    gate = {} if spec.gates.max_ratio is None else {"max_ratio": spec.gates.max_ratio}
    latency = {**gate, **(settings.get("latency") or {})}
    latency.setdefault("enabled", bool(latency))
    recipe = {**common, "output": export.folder, "adapters": [line], "latency": latency, **_QUIET}
    verify, read = _verification(spec, settings.get("verify"), hashes)
    if verify is not None:
        recipe["verify"] = verify
    make_recipe(recipe, folder=spec.folder)
    key = key_of(
        kind="adapter",
        export=first.key,
        adapter=found.content,
        recipe=_without_places(recipe),
        line=_without_places(line),
        data=sorted(read.values()),
        strict=spec.gates.strict,
    )
    return _row(
        "adapter",
        export,
        name=found.name,
        key=key,
        needs=(first.id,),
        artifact=export.folder,
        inputs={**_contents(export, [found]), **read},
        job={"recipe": recipe, "strict": spec.gates.strict},
        estimate=estimate_of("adapter", export.base_path, export.settings, found.path),
    )


def _verification(
    spec: FleetSpec, section: object, hashes: ContentHashes
) -> tuple[object, dict[str, str]]:
    """Return the section ``verify`` with the place of its data set, and the content of that."""
    if not isinstance(section, dict) or not isinstance(section.get("dataset"), str):
        return section, {}
    path = spec.path(section["dataset"]).absolute()
    return {**section, "dataset": str(path)}, {str(path): hashes.of(path)}


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Return JSON values, each once, in an order of their own."""
    by_key = {key_of(value=each): each for each in values}
    return [by_key[key] for key in sorted(by_key)]


def _contents(export: PlannedExport, adapters: Sequence[FleetAdapter]) -> dict[str, str]:
    """Return the content of what a row reads, by path."""
    own = {str(each.path): each.content for each in adapters}
    return {str(export.base_path): export.base_content, **own}


def _target_rows(
    export: PlannedExport, target: str, first: Row, adapters: list[Row]
) -> Iterator[Row]:
    """Yield the rows for a target: engines that can be built here, else a bundle for the device."""
    place = targets.by_name(target)
    if target == targets.RTX:
        yield from _engine_rows(export, target, first, adapters)
    elif place.tensorrt:
        yield _row(
            "bundle",
            export,
            target=target,
            key=key_of(kind="bundle", sources=_keys(first, adapters), target=target),
            needs=(first.id,),
            after=tuple(each.id for each in adapters),
            artifact=f"bundles/{export.base}-{export.variant}-{target}.tar",
            job={"adapters": [each.adapter for each in adapters]},
            estimate=estimate_of("bundle", export.base_path, export.settings),
        )


def _engine_rows(
    export: PlannedExport, target: str, first: Row, adapters: list[Row]
) -> Iterator[Row]:
    """Yield the engines of an export: one for each merged adapter, or one that all share.

    A swappable engine takes adapters as inputs; in a batched one they are values of the engine.
    """
    mode = export.mode
    sources = adapters if mode is Mode.MERGED else [first]
    inside = adapters if mode is Mode.BATCHED else []
    for source in sources:
        yield _row(
            "engine",
            export,
            name=source.adapter,
            target=target,
            key=key_of(kind="engine", sources=_keys(source, inside), target=target),
            needs=(source.id,),
            after=tuple(each.id for each in inside),
            artifact=export.folder,
            job={"graphs": [source.adapter or mode.value]},
            estimate=estimate_of("engine", export.base_path, export.settings),
        )


def _triton_row(
    spec: FleetSpec,
    asked: TritonDeployment,
    export: PlannedExport,
    first: Row,
    adapters: list[Row],
) -> Row:
    """Return the row of the models that serve what passed of an export."""
    settings = asked.model_dump(mode="json", exclude_unset=True)
    return _row(
        "triton",
        export,
        key=key_of(kind="triton", sources=_keys(first, adapters), settings=settings),
        needs=(first.id,),
        after=tuple(each.id for each in adapters),
        artifact=export.folder,
        job={
            "adapters": [each.adapter for each in adapters],
            "name": f"{export.base}-{export.variant}",
            "settings": {
                **settings,
                "repository": os.path.normpath(spec.path(asked.repository).absolute()),
            },
        },
        estimate=estimate_of("triton", export.base_path, export.settings),
    )


def _keys(first: Row, others: Sequence[Row]) -> list[str]:
    return [first.key, *(each.key for each in others)]


def _row(
    kind: Kind,
    export: PlannedExport,
    *,
    name: str | None = None,
    target: str | None = None,
    **more: Any,
) -> Row:
    place = (
        f"{kind}:{export.name}" + (f"/{name}" if name else "") + (f"@{target}" if target else "")
    )
    return Row(
        id=place, kind=kind, base=export.base, variant=export.variant, adapter=name,
        target=target, **more,
    )  # fmt: skip


def _line(found: FleetAdapter, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the adapter's line of a recipe."""
    own = {key: settings[key] for key in ADAPTER_KEYS if settings.get(key) is not None}
    return {"name": found.name, "source": str(found.path), **own}


def _without_places(table: dict[str, Any]) -> dict[str, Any]:
    """Return settings without paths: what is made does not depend on where its inputs are."""
    kept = {key: value for key, value in table.items()
            if key not in {"base", "source", "output", "adapters"}}  # fmt: skip
    if isinstance(verify := kept.get("verify"), dict):
        kept["verify"] = {key: value for key, value in verify.items() if key != "dataset"}
    return kept
