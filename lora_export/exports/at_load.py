"""Merge at load: an adapter's changed weights, computed when a session opens and written nowhere.

They are the bytes that `add` without a base checkpoint would write into
``weights/<adapter>.safetensors``, block by block by the same function; each is kept whole until
ONNX Runtime has taken it. A weight that is stored as int8 is merged into the values that its
integers stand for, and quantized again; int4 is too coarse for that, and refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.errors import UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.quantization import stored_name
from lora_export.core.tensors import bytes_of
from lora_export.exports.merged_entries import merged_entries
from lora_export.exports.stored_values import parameters_of, stored_values
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.printable import shell_command

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.adapters.resolve import Resolved
    from lora_export.core.manifest import Manifest
    from lora_export.weights.stream import Entry

__all__ = ["merged_values", "require_same_shapes", "weights_bytes"]

_HALF_BYTE: Final = 4


def merged_values(
    export_dir: Path, manifest: Manifest, resolved: Resolved
) -> dict[str, npt.NDArray[Any]]:
    """Return the value of each initializer that the adapter changes, in the base graph's layout.

    Of a quantized parameter these are its integers and scales, for each node that reads them.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        resolved: The adapter, resolved against the export's parameters.

    Raises:
        UnsupportedError: A value does not have the base graph's shape; see `require_same_shapes`.
        AdapterError: A tensor of the adapter is damaged.
        ExportDirectoryError: The export is damaged.
        InputError: The graph's dtype cannot hold a merged value.
    """
    require_same_shapes(resolved)
    base_tensors = stored_values(export_dir, manifest)
    entries, _ = merged_entries(manifest, resolved, base_tensors, None, {}, onto_integers=True)
    values = {entry.name: _whole(entry) for entry in entries}
    if manifest.base.quantization is None:
        return values
    graph = parse_onnx(read_graph(resolve_inside(export_dir, manifest.base_graph.onnx))).graph
    read = {each.name: stored_name(each.name) for each in graph.initializer}
    return {name: values[stored] for name, stored in read.items() if stored in values}


def require_same_shapes(resolved: Resolved) -> None:
    """Require that the base graph can take every value of the adapter.

    Raises:
        UnsupportedError: The adapter brings a head of another width, or another vocabulary, or
            changes a weight that is stored in four bits.
    """
    for update in resolved.updates:
        form = update.parameter.quantized
        if form is not None and form.bits == _HALF_BYTE:
            msg = (
                f"adapter {resolved.adapter.name!r} changes {update.parameter.name!r}, which the "
                f"export holds as {form.scheme}: a merge at load would add it to values that "
                "are rounded too much"
            )
            hint = f"Add it to the export: {_add(resolved)} (with --base BASE if it is merged)."
            raise UnsupportedError(msg, hint=hint)
    if resolved.vocabulary is not None:
        msg = (
            f"adapter {resolved.adapter.name!r} {resolved.vocabulary.description} tokens: "
            "a merge at load cannot change a shape"
        )
        raise UnsupportedError(msg, hint=f"Merge it into the export: {_add(resolved)}.")
    for update in resolved.updates:
        if update.saved is None or update.saved.tensor.shape == update.parameter.shape:
            continue
        name = resolved.adapter.name
        msg = (
            f"adapter {name!r} brings {update.parameter.name!r} of shape "
            f"{list(update.saved.tensor.shape)}, the base graph has "
            f"{list(update.parameter.shape)}: "
            "a merge at load cannot change a shape"
        )
        raise UnsupportedError(
            msg,
            hint=f"Merge it into the export ({_add(resolved)}), or export with --mode swappable.",
        )


def _add(resolved: Resolved) -> str:
    adapter = resolved.adapter
    return shell_command(
        ["lora-export", "add", "EXPORT", "--adapter", f"{adapter.name}={adapter.folder}"]
    )


def weights_bytes(manifest: Manifest, *, mapped: bool, changed: Collection[str] = ()) -> int:
    """Return about what the weights of one session of a merged graph take.

    ONNX Runtime shares nothing between sessions: on the CPU it repacks every matrix, on a GPU it
    copies all weights. What it leaves alone, an embedding that is only looked up, stays in the file
    and thereby in the page cache, once for all.

    Args:
        manifest: That of the export.
        mapped: Whether the provider reads embeddings from the file.
        changed: Initializers that are handed over from memory.
    """
    return sum(
        each.stored_bytes
        for each in parameters_of(manifest)
        if not (
            mapped
            and each.module_type == "Embedding"
            and not each.aliases
            and each.name not in changed
        )
    )


def _whole(entry: Entry) -> npt.NDArray[Any]:
    values = np.empty(entry.shape, entry.dtype.numpy)
    raw = bytes_of(values)
    done = 0
    for block in entry.blocks():
        part = bytes_of(np.ascontiguousarray(block))
        raw[done : done + len(part)] = part
        done += len(part)
    return values
