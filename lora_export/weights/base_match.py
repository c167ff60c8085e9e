"""Whether a base is the one that an adapter records, told by the tensors that the adapter changes.

Shapes and dtypes are compared first, from headers; then the bytes of these tensors, and no others:
a base that differs elsewhere (another head, one more tensor) merges to the same values. The name
that PEFT records (``base_model_name_or_path``) is not compared here: names
move (``adapters/base_name.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.known_base import KnownBase
from lora_export.adapters.resolve import ModelNames
from lora_export.core.errors import AdapterError
from lora_export.core.tensors import sha256_of_tensor
from lora_export.weights.fingerprint import fingerprint_of, tensor_digests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.tensors import Tensor
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["header_differences", "record_base", "require_known_base", "value_differences"]

_DIGITS: Final = 16
_SHOWN: Final = 3


def record_base(
    checkpoint: Checkpoint,
    changed: Iterable[str],
    advance: Callable[[int], None] | None = None,
) -> KnownBase:
    """Return the record of `checkpoint` for an adapter; the checkpoint is read once.

    Args:
        checkpoint: The base.
        changed: The names of the tensors that the adapter changes; of a quantized base, what they
            are stored as is recorded.
        advance: Told the number of bytes after each block.
    """
    rows = tensor_digests(checkpoint, advance)
    if (quantized := checkpoint.quantized) is not None:
        changed = (stored for name in changed for stored in quantized.stored_names(name))
    tensors = {
        name: (rows[name][0], rows[name][1], rows[name][2][:_DIGITS])
        for name in sorted(set(changed) & rows.keys())
    }
    return KnownBase(fingerprint_of(rows), tensors)


def require_known_base(
    adapter: Adapter, tensors: Mapping[str, Tensor], prefix: str, base: str
) -> None:
    """Require that `tensors` are the base that `adapter` records, if it records one.

    Args:
        adapter: The adapter.
        tensors: The base's tensors as its files hold them.
        prefix: The bare model's name inside one with a head; see `prefix_of`.
        base: What the user calls the base, for the message.

    Raises:
        AdapterError: It is another base; the first tensors that differ are named.
    """
    if adapter.known_base is None:
        return
    known = adapter.known_base
    found = header_differences(known, tensors, prefix) or value_differences(known, tensors, prefix)
    if found:
        msg = f"{base!r} is not the base that adapter {adapter.source!r} was made for:"
        hint = (
            f"It records the fingerprint {known.fingerprint[:16]}…; inspect BASE --hash shows a "
            "base's. To have this base recorded instead: adapter convert … --base BASE"
        )
        raise AdapterError(msg, items=found, hint=hint)


def header_differences(
    known: KnownBase, tensors: Mapping[str, Tensor], prefix: str
) -> tuple[str, ...]:
    """Return a line for each of the first recorded tensors that the headers contradict."""
    lines: list[str] = []
    for name, (dtype, shape, _) in known.tensors.items():
        tensor = _find(name, tensors, prefix)
        if tensor is None:
            lines.append(f"{name}: the base has no tensor of this name")
        elif (tensor.dtype.name, tensor.shape) != (dtype, shape):
            lines.append(
                f"{name}: {tensor.dtype.name} {list(tensor.shape)}, recorded is {dtype} "
                f"{list(shape)}"
            )
        if len(lines) == _SHOWN:
            break
    return tuple(lines)


def value_differences(
    known: KnownBase, tensors: Mapping[str, Tensor], prefix: str
) -> tuple[str, ...]:
    """Return a line for each of the first recorded tensors whose bytes differ, reading no more."""
    lines: list[str] = []
    for name, (_, _, expected) in known.tensors.items():
        tensor = _find(name, tensors, prefix)
        if tensor is None:
            continue
        found = sha256_of_tensor(tensor)[:_DIGITS]
        if found != expected:
            lines.append(f"{name}: SHA-256 is {found}…, recorded is {expected}…")
        if len(lines) == _SHOWN:
            break
    return tuple(lines)


def _find(name: str, tensors: Mapping[str, Tensor], prefix: str) -> Tensor | None:
    """Return the tensor under `name`, or under the name that the bare model or a head gives it."""
    for candidate in ModelNames((), prefix).candidates(name):
        if candidate in tensors:
            return tensors[candidate]
    return None
