"""A fleet expanded to the rows of a plan: bases × variants × adapters × targets.

Each base in each variant is an export, and so is each group of adapters whose own keys change the
graph (``mode``, ``dtype``, …). What an export is made of is in `export_rows`.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

from lora_export.commands.fleet.export_rows import PlannedExport, rows_of
from lora_export.commands.fleet.inputs import adapters_of, local_input
from lora_export.commands.fleet.spec import GRAPH_KEYS, merged_settings
from lora_export.commands.fleet.tool_versions import tool_versions
from lora_export.commands.recipe import make_recipe
from lora_export.core import targets
from lora_export.core.errors import StorageError, UsageError
from lora_export.core.modes import Mode
from lora_export.core.version import VERSION
from lora_export.fleet.content import CONTENT_FILE, ContentHashes
from lora_export.fleet.fleet_plan import Plan, key_of
from lora_export.fleet.store.open_store import home_of
from lora_export.fleet.store.url import is_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.commands.fleet.export_rows import Member
    from lora_export.commands.fleet.inputs import FleetAdapter
    from lora_export.commands.fleet.spec import FleetSpec
    from lora_export.core.progress import Progress
    from lora_export.fleet.fleet_plan import Row

__all__ = ["plan_fleet"]


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
    place = spec.store if is_url(spec.store) else os.path.normpath(spec.path(spec.store).absolute())
    store = home_of(place)
    hashes = ContentHashes(store / CONTENT_FILE)
    progress.start("reading the fleet's inputs")
    bases = {
        name: local_input(spec, each.path, f"bases.{name}") for name, each in spec.bases.items()
    }
    contents = {name: hashes.of(path) for name, path in bases.items()}
    found = adapters_of(spec, hashes)
    exports: list[PlannedExport] = []
    for name, base in spec.bases.items():
        for variant, title in zip(spec.variants, _titles(spec, base.settings()), strict=True):
            shared = merged_settings(base.settings(), variant.settings())
            make_recipe(
                {**_graph_settings(shared), "base": name, "output": "."}, folder=spec.folder
            )
            verify = (shared.get("verify") or {}).get("enabled", True) is not False
            group = _grouped(shared, title, found.get(name, ()))
            exports += [
                PlannedExport(name, own, bases[name], contents[name], settings, verify, adapters)
                for own, settings, adapters in group
            ]
    rows = [row for each in exports for row in rows_of(spec, each, hashes)]
    _require_places(rows)
    if os.path.isdir(store):  # noqa: PTH112  (a path that cannot be is no directory)
        with contextlib.suppress(StorageError):  # only slower next time
            hashes.save()
    return Plan(
        tool=VERSION,
        versions=tool_versions(),
        targets=tuple(spec.targets),
        store=place,
        rows=tuple(rows),
    )


def _titles(spec: FleetSpec, base: dict[str, Any]) -> list[str]:
    """Return the names of the variants; two that would be alike are told apart by number."""
    titles: list[str] = []
    for variant in spec.variants:
        title = variant.name or _title(merged_settings(base, variant.settings()))
        if title in titles and variant.name is not None:
            msg = f"two variants are called {title!r}"
            raise UsageError(msg, hint="Give each a name of its own.")
        same = sum(re.fullmatch(rf"{re.escape(title)}(-\d+)?", each) is not None for each in titles)
        titles.append(f"{title}-{same + 1}" if same else title)
    return titles


def _title(settings: dict[str, Any]) -> str:
    scheme = settings.get("quantize")
    parts = [
        settings.get("mode") or Mode.MERGED.value,
        settings.get("dtype"),
        scheme.get("weights") if isinstance(scheme, dict) else scheme,
    ]
    return re.sub(r"[^a-z0-9_.-]+", "-", "-".join(str(part) for part in parts if part))


def _grouped(
    shared: dict[str, Any], title: str, found: Sequence[FleetAdapter]
) -> list[tuple[str, dict[str, Any], list[Member]]]:
    """Return the exports of a variant: by name, their settings, and the adapters of each."""
    groups: dict[str, tuple[str, dict[str, Any], list[Member]]] = {}
    plain = _graph_settings(shared)
    for each in found:
        settings = merged_settings(shared, each.settings)
        graph = _graph_settings(settings)
        make_recipe({**graph, "base": each.name, "output": "."}, folder=each.path)
        key = key_of(**graph)
        name = title if graph == plain else f"{title}-{key[:8]}"
        groups.setdefault(key, (name, graph, []))[2].append((each, settings))
    return list(groups.values())


def _graph_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in GRAPH_KEYS if settings.get(key) is not None}


def _require_places(rows: Sequence[Row]) -> None:
    """Require that no two rows write to one place: names of bases and variants are joined."""
    seen: dict[str, str] = {}
    for row in rows:
        place = row.artifact if row.kind == "bundle" else f"triton {row.job.get('name')}"
        if row.kind in {"bundle", "triton"}:
            other = seen.setdefault(place, row.id)
            if other != row.id:
                msg = f"{other!r} and {row.id!r} would both make {place!r}"
                raise UsageError(msg, hint="Give a base or a variant another name.")
