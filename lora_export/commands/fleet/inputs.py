"""The inputs of a fleet: its bases and adapters found on this machine or the hub, and hashed."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.read_spec import name_of
from lora_export.core.adapter_names import check_adapter_name
from lora_export.core.errors import AdapterError, InputError, UsageError
from lora_export.core.hub import is_hub_id, local_path
from lora_export.core.shown_value import shown
from lora_export.fleet.fleet_plan import key_of
from lora_export.ondevice.file_opening import reason_of

if TYPE_CHECKING:
    from lora_export.commands.fleet.spec import AdapterEntry, FleetSpec
    from lora_export.fleet.content import ContentHashes

__all__ = ["FleetAdapter", "adapters_of", "local_input"]

_SHOWN: Final = 200
_GLOB: Final = frozenset("*?[")


@dataclass(frozen=True)
class FleetAdapter:
    """An adapter of the fleet: its name, its place, its content, its own keys."""

    name: str
    path: Path
    content: str
    settings: dict[str, Any]


def adapters_of(spec: FleetSpec, hashes: ContentHashes) -> dict[str, list[FleetAdapter]]:
    """Return the adapters of each base, in the order of the fleet."""
    found: dict[str, dict[str, FleetAdapter]] = {}
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
            own[name] = FleetAdapter(name, path, _content(hashes, path), entry.settings())
    return {base: list(rows.values()) for base, rows in found.items()}


def _content(hashes: ContentHashes, path: Path) -> str:
    """Return the content of an adapter; of one that cannot be read, a hash of the error.

    It stops no other: its own row says what is wrong with it.
    """
    try:
        return hashes.of(path)
    except InputError as error:
        return key_of(unreadable=error.message)


def _paths(spec: FleetSpec, entry: AdapterEntry, where: str) -> list[Path]:
    """Return the places that an entry means."""
    if not _GLOB & set(entry.path):
        return [local_input(spec, entry.path, where)]
    if entry.name is not None:
        msg = f"{where} gives one name to all that match {entry.path!r}"
        raise UsageError(msg, hint="Leave the name out: each is called as its folder.")
    if "**" in entry.path:
        msg = f"{where} has the path {shown(entry.path, _SHOWN)}: ** would search whole trees"
        raise UsageError(msg, hint="Write an entry for each level: adapters/*, adapters/*/*.")
    given = Path(entry.path)
    root = Path(given.anchor) if given.is_absolute() else spec.folder.absolute()
    try:
        matched = sorted(root.glob(str(given.relative_to(given.anchor))))
    except (OSError, ValueError, NotImplementedError, RecursionError) as error:
        msg = f"{where} has the path {shown(entry.path, _SHOWN)}, which is no pattern: {error}"
        raise InputError(msg, hint="Write a pattern such as adapters/intents-*.") from error
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


def local_input(spec: FleetSpec, text: str, where: str) -> Path:
    """Return the folder or file that a path or an id of the hub means."""
    path = local_path(text, spec.folder).absolute()
    try:
        path.stat()
    except FileNotFoundError as error:
        msg = f"{where} has the path {text!r}, which does not exist"
        hint = f"Paths start in {str(spec.folder.absolute())!r}."
        raise InputError(msg, hint=hint if not is_hub_id(text) else "Check the id.") from error
    except OSError as error:
        msg = (
            f"{where} has the path {shown(text, _SHOWN)}, which cannot be read: {reason_of(error)}"
        )
        raise InputError(msg, hint="Check the path and its permissions.") from error
    return path
