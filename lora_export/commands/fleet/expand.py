"""A fleet expanded to the rows of a plan: bases × variants × adapters × targets.

    export:BASE/VARIANT             the base of a variant, once
    adapter:BASE/VARIANT/NAME       an adapter added to it, verified, measured; needs the export
    engine:BASE/VARIANT[/NAME]@T    a TensorRT engine; needs the adapter, or the export
    bundle:BASE/VARIANT@T           a bundle for a device, after all adapters of the export

An adapter whose own keys change the graph (``mode``, ``dtype``, …) has an export of its own.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.read_spec import name_of
from lora_export.commands.fleet.estimates import estimate_of
from lora_export.commands.fleet.spec import (
    ADAPTER_KEYS,
    GRAPH_KEYS,
    merged_settings,
)
from lora_export.commands.recipe import make_recipe
from lora_export.core import targets
from lora_export.core.adapter_names import check_adapter_name
from lora_export.core.errors import AdapterError, InputError, UsageError
from lora_export.core.hub import is_hub_id, local_path
from lora_export.core.modes import SHARED_MODES, Mode
from lora_export.core.version import VERSION
from lora_export.fleet.content import CONTENT_FILE, ContentHashes
from lora_export.fleet.plan import Estimate, Kind, Plan, Row, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.commands.fleet.spec import AdapterEntry, FleetSpec
    from lora_export.core.progress import Progress

__all__ = ["plan_fleet"]

_LIBRARIES: Final = ("onnx", "onnxruntime", "torch", "transformers", "peft")
_GLOB: Final = frozenset("*?[")


@dataclass(frozen=True)
class _Found:
    """An adapter of the fleet: its name, its place, its content, its own keys."""

    name: str
    path: Path
    content: str
    settings: dict[str, Any]


@dataclass
class _Export:
    """An export of the plan: a base in a variant, with the adapters that go into it."""

    base: str
    variant: str
    base_path: Path
    base_content: str
    settings: dict[str, Any]
    adapters: list[tuple[_Found, dict[str, Any]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.base}/{self.variant}"

    @property
    def mode(self) -> Mode:
        return Mode(self.settings.get("mode", Mode.MERGED))

    @property
    def folder(self) -> str:
        return f"exports/{self.name}"


def plan_fleet(spec: FleetSpec, progress: Progress) -> Plan:
    """Expand a fleet to a plan; nothing but hashes of inputs is written.

    Args:
        spec: The fleet.
        progress: Told what is read.

    Raises:
        UsageError: A setting or a target is wrong.
        InputError: A base or an adapter is missing, a pattern matches nothing, two adapters of one
            base have one name.
        HubError: An id of the hub cannot be had.
    """
    for name in spec.targets:
        targets.by_name(name)
    store = spec.path(spec.store)
    hashes = ContentHashes(store / CONTENT_FILE)
    progress.start("reading the fleet's inputs")
    bases = {name: _local(spec, each.path, f"bases.{name}") for name, each in spec.bases.items()}
    contents = {name: hashes.of(path) for name, path in bases.items()}
    found = _adapters(spec, hashes)
    exports: list[_Export] = []
    for name, base in spec.bases.items():
        for variant, title in zip(spec.variants, _titles(spec, base.settings()), strict=True):
            shared = merged_settings(base.settings(), variant.settings())
            group = _grouped(shared, title, found.get(name, ()))
            exports += [
                _Export(name, own, bases[name], contents[name], settings, adapters)
                for own, settings, adapters in group
            ]
    if store.is_dir():
        hashes.save()
    rows = [row for each in exports for row in _rows(spec, each)]
    return Plan(tool=VERSION, store=str(store.absolute()), rows=tuple(rows))


def _adapters(spec: FleetSpec, hashes: ContentHashes) -> dict[str, list[_Found]]:
    """Return the adapters of each base, in the order of the fleet."""
    found: dict[str, dict[str, _Found]] = {}
    for at, entry in enumerate(spec.adapters):
        where = f"adapters.{at}"
        for path in _paths(spec, entry, where):
            name = check_adapter_name(entry.name or name_of(path))
            own = found.setdefault(entry.base, {})
            if name in own:
                msg = (
                    f"two adapters of the base {entry.base!r} are called {name!r}: "
                    f"{str(own[name].path)!r} and {str(path)!r}"
                )
                raise AdapterError(msg, hint="Give one another name, or exclude it.")
            own[name] = _Found(name, path, hashes.of(path), entry.settings())
    return {base: list(rows.values()) for base, rows in found.items()}


def _paths(spec: FleetSpec, entry: AdapterEntry, where: str) -> list[Path]:
    """Return the places that an entry means."""
    if not _GLOB & set(entry.path):
        return [_local(spec, entry.path, where)]
    if entry.name is not None:
        msg = f"{where} gives one name to all that match {entry.path!r}"
        raise UsageError(msg, hint="Leave the name out: each is called as its folder.")
    root = spec.folder if not Path(entry.path).is_absolute() else Path(entry.path).anchor
    pattern = (
        str(Path(entry.path).relative_to(root)) if Path(entry.path).is_absolute() else entry.path
    )
    matched = sorted(Path(root).glob(pattern))
    kept = [each for each in matched if not _is_excluded(each, entry.exclude)]
    if not kept:
        said = f"all {len(matched)} of them are excluded" if matched else "nothing matches it"
        msg = f"{where} has the path {entry.path!r}: {said}"
        raise InputError(msg, hint=f"Patterns start in {str(spec.folder.absolute())!r}.")
    return kept


def _is_excluded(path: Path, patterns: list[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(path.name, each) or fnmatch.fnmatchcase(path.as_posix(), each)
        for each in patterns
    )


def _local(spec: FleetSpec, text: str, where: str) -> Path:
    """Return the folder or file that a path or an id of the hub means."""
    path = local_path(text, spec.folder)
    if not path.exists():
        msg = f"{where} has the path {text!r}, which does not exist"
        hint = f"Paths start in {str(spec.folder.absolute())!r}."
        raise InputError(msg, hint=hint if not is_hub_id(text) else "Check the id.")
    return path


def _titles(spec: FleetSpec, base: dict[str, Any]) -> list[str]:
    """Return the names of the variants; two that would be alike are told apart by number."""
    titles: list[str] = []
    for variant in spec.variants:
        title = variant.name or _title(merged_settings(base, variant.settings()))
        if title in titles and variant.name is not None:
            msg = f"two variants are called {title!r}"
            raise UsageError(msg, hint="Give each a name of its own.")
        number = 2
        while title in titles:
            title = f"{title.rstrip('0123456789').rstrip('-')}-{number}"
            number += 1
        titles.append(title)
    return titles


def _title(settings: dict[str, Any]) -> str:
    scheme = settings.get("quantize")
    parts = [
        settings.get("mode") or Mode.MERGED.value,
        settings.get("dtype"),
        scheme.get("weights") if isinstance(scheme, dict) else scheme,
    ]
    return "-".join(str(part) for part in parts if part)


def _grouped(
    shared: dict[str, Any], title: str, found: Iterator[_Found] | list[_Found] | tuple[_Found, ...]
) -> list[tuple[str, dict[str, Any], list[tuple[_Found, dict[str, Any]]]]]:
    """Return the exports of a variant: by name, their settings, and the adapters of each."""
    groups: dict[str, tuple[str, dict[str, Any], list[tuple[_Found, dict[str, Any]]]]] = {}
    plain = _graph_settings(shared)
    for each in found:
        settings = merged_settings(shared, each.settings)
        graph = _graph_settings(settings)
        key = key_of(**graph)
        name = title if graph == plain else f"{title}-{key[:8]}"
        groups.setdefault(key, (name, graph, []))[2].append((each, settings))
    return list(groups.values())


def _graph_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in GRAPH_KEYS if settings.get(key) is not None}


def _rows(spec: FleetSpec, export: _Export) -> Iterator[Row]:
    """Yield the rows of an export."""
    target = min(spec.targets, key=lambda name: targets.by_name(name).opset)
    common = {**export.settings, "base": str(export.base_path), "targets": [target]}
    first = _export_row(spec, export, common)
    yield first
    adapters: list[Row] = []
    batched = export.mode is Mode.BATCHED
    for found, settings in export.adapters:
        before = tuple(row.id for row in adapters) if batched else ()  # rows in the plan's order
        row = _adapter_row(spec, export, common, first, found, settings, before[-1:])
        adapters.append(row)
        yield row
    for name in spec.targets:
        yield from _target_rows(export, name, first, adapters)


def _export_row(spec: FleetSpec, export: _Export, common: dict[str, Any]) -> Row:
    """Return the row of the base; graphs that adapters share are made for all of them."""
    shared = export.mode in SHARED_MODES
    lines = [_line(found, settings) for found, settings in export.adapters] if shared else []
    recipe = {**common, "output": export.folder, "verify": {"enabled": False},
              "latency": {"enabled": False}, "bundle": {"enabled": False}}  # fmt: skip
    for line in lines or [None]:
        make_recipe({**recipe, "adapters": [line] if line else []}, folder=spec.folder)
    contents = [found.content for found, _ in export.adapters] if shared else []
    return _row(
        "export", export,
        key=key_of(kind="export", versions=_versions(), base=export.base_content,
                   recipe=_without_places(recipe), adapters=contents, lines=list(map(_without_places, lines))),
        artifact=export.folder,
        inputs={str(export.base_path): export.base_content,
                **({str(found.path): found.content for found, _ in export.adapters} if shared else {})},
        job={"recipe": recipe, "adapters": lines},
        estimate=estimate_of("export", export.base_path, export.settings),
    )  # fmt: skip


def _adapter_row(
    spec: FleetSpec,
    export: _Export,
    common: dict[str, Any],
    first: Row,
    found: _Found,
    settings: dict[str, Any],
    after: tuple[str, ...],
) -> Row:
    line = _line(found, settings)
    latency = dict(settings.get("latency") or {})
    if spec.gates.max_ratio is not None:
        latency = {"max_ratio": spec.gates.max_ratio, **latency}
    latency.setdefault("enabled", bool(latency))
    recipe = {**common, "output": export.folder, "adapters": [line], "latency": latency,
              "bundle": {"enabled": False}}  # fmt: skip
    if settings.get("verify") is not None:
        recipe["verify"] = settings["verify"]
    make_recipe(recipe, folder=spec.folder)
    return _row(
        "adapter", export, name=found.name,
        key=key_of(kind="adapter", export=first.key, adapter=found.content,
                   recipe=_without_places(recipe), line=_without_places(line),
                   strict=spec.gates.strict),
        needs=(first.id,), after=after, artifact=export.folder,
        inputs={str(export.base_path): export.base_content, str(found.path): found.content},
        job={"recipe": recipe, "strict": spec.gates.strict},
        estimate=estimate_of("adapter", export.base_path, export.settings, found.path),
    )  # fmt: skip


def _target_rows(export: _Export, target: str, first: Row, adapters: list[Row]) -> Iterator[Row]:
    """Yield the rows for a target: engines that can be built here, else a bundle for the device."""
    row = targets.by_name(target)
    none = Estimate(memory_bytes=0, disk_bytes=0, seconds=0.0)
    if not row.tensorrt and not row.rtx:
        return
    if row.rtx and target == targets.RTX:
        sources = [first] if export.mode in SHARED_MODES else adapters
        graph = export.mode.value
        for source in sources:
            after = tuple(each.id for each in adapters) if source is first else ()
            made_of = [source.key, *([each.key for each in adapters] if source is first else [])]
            name = source.adapter
            yield _row(
                "engine", export, name=name, target=target,
                key=key_of(kind="engine", sources=made_of, target=target),
                needs=(source.id,), after=after, artifact=f"{export.folder}/engines",
                job={"graphs": [name or graph]},
                estimate=estimate_of("engine", export.base_path, export.settings),
            )  # fmt: skip
        return
    yield _row(
        "bundle", export, target=target,
        key=key_of(kind="bundle", sources=[first.key, *(each.key for each in adapters)],
                   target=target),
        needs=(first.id,), after=tuple(each.id for each in adapters),
        artifact=f"bundles/{export.base}-{export.variant}-{target}.tar",
        job={"adapters": {each.id: each.adapter for each in adapters}},
        estimate=none.model_copy(update={"seconds": 5.0}),
    )  # fmt: skip


def _row(
    kind: Kind, export: _Export, *, name: str | None = None, target: str | None = None, **more: Any
) -> Row:
    place = (
        f"{kind}:{export.name}" + (f"/{name}" if name else "") + (f"@{target}" if target else "")
    )
    return Row(
        id=place, kind=kind, base=export.base, variant=export.variant, adapter=name,
        target=target, **more,
    )  # fmt: skip


def _line(found: _Found, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the adapter's line of a recipe."""
    own = {key: settings[key] for key in ADAPTER_KEYS if settings.get(key) is not None}
    return {"name": found.name, "source": str(found.path), **own}


def _without_places(table: dict[str, Any]) -> dict[str, Any]:
    """Return settings without paths: what is made does not depend on where its inputs are."""
    return {key: value for key, value in table.items()
            if key not in {"base", "source", "output", "adapters"}}  # fmt: skip


def _versions() -> dict[str, str]:
    """Return the versions of the tool and of the libraries that the results depend on."""
    found = {"lora-export": VERSION}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
