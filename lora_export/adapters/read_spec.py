"""An adapter read as its `AdapterSpec` says: found, named, and scaled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.adapters.combine import scaled
from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.adapter_names import adapter_name_from, check_adapter_name
from lora_export.core.errors import AdapterError
from lora_export.core.hub import hub_id_of, local_path
from lora_export.ondevice.file_opening import real_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.adapter_spec import AdapterSpec

__all__ = ["name_of", "read_spec"]


def read_spec(
    spec: AdapterSpec, folder: Path = Path(), *, base_config: Mapping[str, Any] | None = None
) -> Adapter:
    """Read an adapter, scaled.

    Args:
        spec: Where it is, and what its files do not say.
        folder: Where relative paths are taken from.
        base_config: The base's ``config.json``, where it is at hand; some formats need it.

    Raises:
        AdapterError: It is missing or damaged, or its name is not allowed.
        HubError: Its id of the hub means nothing that can be had.
        UnsupportedError: It is of a kind that cannot be read.
        UsageError: An option does not fit it.
    """
    path = local_path(spec.source, folder, subfolder=spec.subfolder)
    adapter = read_adapter(
        path,
        name=check_adapter_name(spec.name or name_of(path)),
        source=spec.source,
        format=spec.format,
        alpha=spec.alpha,
        enable_lora=spec.enable_lora,
        base_config=base_config,
    )
    return scaled(adapter, spec.scale)


def name_of(path: Path) -> str:
    """Return the name of an adapter that was given none: that of its file, folder or repository.

    Raises:
        AdapterError: Nothing of that name may be in an adapter's.
    """
    if path.is_file():
        own = path.stem
    elif (cached := hub_id_of(path)) is not None:
        repository, _, commit = cached.partition("@")
        below = commit.rpartition("/")[2] if "/" in commit else ""
        own = below or repository.rpartition("/")[2]
    else:
        own = real_path(path).name
    name = adapter_name_from(own)
    if not name:
        msg = f"cannot derive an adapter name from {str(path)!r}"
        raise AdapterError(msg, hint="Give it one: --adapter NAME=PATH.")
    return name
