"""The source of a sentence model's pooling: beside the base, or beside an adapter.

sentence-transformers saves an adapter with the modules of its model: ``modules.json`` and
``1_Pooling/`` lie beside ``adapter_config.json``, or one folder above it where ``modules.json``
names the adapter's folder (``0_Transformer``) as the transformer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.json_file import read_json
from lora_export.core.tensors import same_values
from lora_export.ondevice.file_opening import real_path
from lora_export.weights.companion_files import (
    LIMIT_BYTES,
    SENTENCE,
    adapter_folder,
    companion_files,
)
from lora_export.weights.sentence import has_pooling, read_sentence_head, transformer_path
from lora_export.weights.sentence_head import Pooling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.weights.companion_files import Content

__all__ = [
    "agreed_pooling",
    "pooling_beside",
    "pooling_of",
    "pooling_of_export",
    "require_pooling",
    "sentence_files",
]


def pooling_beside(folder: Path) -> Pooling | None:
    """Return the pooling that ``modules.json`` in `folder` describes; None without one.

    Raises:
        CheckpointError: The file is damaged.
    """
    return Pooling(folder) if has_pooling(folder) else None


def pooling_of(adapter: Adapter) -> Pooling | None:
    """Return the pooling that lies with an adapter; None without one.

    Raises:
        CheckpointError: ``modules.json`` is damaged.
    """
    folder = adapter_folder(adapter)
    if folder is None:
        return None
    if (own := pooling_beside(folder)) is not None:
        return own
    real = real_path(folder)
    if has_pooling(real.parent) and transformer_path(real.parent) == real.name:
        return Pooling(real.parent, real.name)
    return None


def agreed_pooling(base: Path, adapters: Sequence[Adapter]) -> Pooling | None:
    """Return how a base and its adapters pool: as all do that say it; None where none does.

    Args:
        base: The folder of the base.
        adapters: The adapters.

    Raises:
        CheckpointError: A file is missing or damaged.
        UnsupportedError: Two of them pool differently, or in a way that is not known.
    """
    found = [("the base", pooling_beside(base))]
    found += [(f"adapter {each.name!r}", pooling_of(each)) for each in adapters]
    known = [(whose, pooling) for whose, pooling in found if pooling is not None]
    for whose, pooling in known[1:]:
        _require_same(*known[0], whose, pooling)
    return known[0][1] if known else None


def pooling_of_export(export_dir: Path, base: Path) -> Pooling | None:
    """Return the pooling of an export: as its base describes it, else as the export does.

    Args:
        export_dir: The export directory; its ``hf/`` has the pooling that adapters brought.
        base: The folder of the base.

    Raises:
        CheckpointError: ``modules.json`` is damaged.
    """
    return pooling_beside(base) or pooling_beside(export_dir / "hf")


def require_pooling(held: Pooling, adapters: Sequence[Adapter]) -> None:
    """Require of adapters that are added to an export that they pool as it does, or say nothing.

    Args:
        held: The pooling of the export.
        adapters: The adapters.

    Raises:
        UnsupportedError: One pools differently.
    """
    for each in adapters:
        if (own := pooling_of(each)) is not None:
            _require_same("the export", held, f"adapter {each.name!r}", own)


def _require_same(first: str, held: Pooling, second: str, own: Pooling) -> None:
    head, tensors = read_sentence_head(held)
    other, others = read_sentence_head(own)
    same = head == other and all(same_values(tensors[name], others[name]) for name in tensors)
    if same:
        return
    what = str(other) if head != other else f"{other} of other values"
    msg = f"{second} makes sentence embeddings by {what!r}, {first} by {str(head)!r}"
    raise UnsupportedError(
        msg,
        hint="Export them into folders of their own; or the states of the tokens: "
        "--task feature-extraction.",
    )


def sentence_files(pooling: Pooling) -> dict[str, Content]:
    """Return the files of a pooling by the names that they have beside a model.

    Raises:
        CheckpointError: ``modules.json`` is damaged.
    """
    files: dict[str, Content] = {
        name: path
        for name, path in companion_files(pooling.folder).items()
        if SENTENCE.fullmatch(name) and not (pooling.inner and name.startswith(f"{pooling.inner}/"))
    }
    if pooling.inner:
        again = "Save the model again with sentence-transformers."
        path = pooling.folder / "modules.json"
        rows = read_json(path, LIMIT_BYTES, CheckpointError, absent=again, damaged=again)
        rows = [{**row, "path": "" if row["path"] == pooling.inner else row["path"]}
                for row in rows]  # fmt: skip
        files["modules.json"] = (json.dumps(rows, indent=2) + "\n").encode()
    return files
