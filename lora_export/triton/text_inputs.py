"""Checks that the tokenizer of a repository is right for an adapter that is added to it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.triton.protobuf_schema import CONFIG_NAME, parse_config
from lora_export.triton.token_inputs import ADAPTERS, own_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["require_known_texts"]

_SAID: Final = ("sha256", "pad_id", "pad_type_id")
"""Key of a cached tokenizer; a graph of one length has its own ``max_length``."""


def require_known_texts(
    export_dir: Path, manifest: Manifest, repository: Path, stem: str, names: Sequence[str]
) -> None:
    """Require that the tokenizer of a model makes the tokens that adapters were trained with.

    The files of a model that a server runs are not changed, so an adapter with a tokenizer that the
    repository does not have cannot be added to it.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        repository: The repository.
        stem: What the names of the models begin with.
        names: The adapters that are added.

    Raises:
        AdapterError: The model's configuration is damaged.
        UnsupportedError: An adapter has another tokenizer than the repository has for it.
    """
    path = repository / f"{stem}-tokenizer" / CONFIG_NAME
    if not os.path.lexists(path):
        return
    held = parse_config(path).parameters
    lines = _lines(held[ADAPTERS].string_value, path) if ADAPTERS in held else {}
    wanted = {
        each: text.line(each) for each, text in own_texts(export_dir, manifest, names).items()
    }
    for name in names:
        before, now = ([line.get(key) for key in _SAID] for line in
                       (lines.get(name, {}), wanted.get(name, {})))  # fmt: skip
        if before != now:
            msg = f"the tokenizer of adapter {name!r} is not the one that {path.parent.name!r} has"
            raise UnsupportedError(
                msg,
                hint="Write the repository again: "
                "lora-export triton EXPORT --repository DIR --text",
            )


def _lines(text: str, path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict) or not all(isinstance(e, dict) for e in table.values()):
        msg = f"the parameter {ADAPTERS!r} in {str(path)!r} is not a table of adapters"
        raise AdapterError(msg, hint="Write the repository again.")
    return table
