"""The arguments of the public functions, as values: adapters and paths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.core.adapter_names import split_adapter
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["as_path", "as_specs"]


def as_path(path: str | Path | None) -> Path | None:
    """Return a path that may be a text or missing."""
    return None if path is None else Path(path)


def as_specs(adapters: Sequence[AdapterSpec | str | Path]) -> list[AdapterSpec]:
    """Return adapters that are given as specs, as ``"[NAME=]PATH"`` or as paths, as specs.

    >>> [spec.name for spec in as_specs(["sst2=adapters/sst2", Path("adapters/a=b")])]
    ['sst2', None]

    Raises:
        UsageError: A single string is given in place of a list, or nothing is before a ``=``.
    """
    if isinstance(adapters, str):
        msg = f"the adapters are the text {adapters!r}, and not a list"
        raise UsageError(msg, hint=f"Give a list: [{adapters!r}].")
    return [_as_spec(each) for each in adapters]


def _as_spec(adapter: AdapterSpec | str | Path) -> AdapterSpec:
    if isinstance(adapter, AdapterSpec):
        return adapter
    name, source = split_adapter(adapter) if isinstance(adapter, str) else (None, str(adapter))
    return AdapterSpec(name=name, source=source)
