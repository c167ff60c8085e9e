"""An adapter's files, opened but not read, and helpers that all readers share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.canonical import Adapter, LowRank
from lora_export.core.dtypes import to_float32
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.files import sha256_of_files
from lora_export.core.json_file import read_table
from lora_export.core.shown_value import shown
from lora_export.core.tensors import MemoryTensor, read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.adapters.canonical import Saved
    from lora_export.core.json_file import JsonObject
    from lora_export.core.tensors import Tensor

__all__ = [
    "Opened",
    "Options",
    "derived",
    "finish",
    "finite_number",
    "given_alpha",
    "is_embedding",
    "read_settings",
    "require_pair",
    "require_rank",
    "require_short_names",
    "scalar",
    "transposed",
]

_SETTINGS_LIMIT_BYTES: Final = 1 << 22
_NAME_LIMIT: Final = 1000
_NUMBER_LIMIT: Final = 1e30
_EMBEDDINGS: Final = frozenset(
    {
        "embed_in",
        "embed_positions",
        "embed_tokens",
        "position_embedding",
        "position_embeddings",
        "shared",
        "tok_embeddings",
        "token_embedding",
        "token_type_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)
"""What embeddings are called: their factors have the shapes of a Linear's."""


@dataclass(frozen=True)
class Options:
    """Settings that a format may not record, as the user gives them.

    Attributes:
        alpha: The alpha of ``s = alpha / r``.
        enable_lora: Which blocks of a ``MergedLinear`` are adapted.
        base_config: The base's ``config.json``, where the base is at hand.
    """

    alpha: float | None = None
    enable_lora: tuple[bool, ...] | None = None
    base_config: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Opened:
    """An adapter's files.

    Attributes:
        name: The name it goes by in an export.
        source: Where it came from, as the user wrote it.
        place: The folder or the file that the user gave.
        weights: The file of tensors.
        settings: The file of settings; None where there is none.
        tensors: The tensors by their names in the file, unread.
        config: What the settings say; empty without any.
        metadata: What the header of the file of tensors says beside them.
    """

    name: str
    source: str
    place: Path
    weights: Path
    settings: Path | None
    tensors: Mapping[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    metadata: Mapping[str, Any] = field(repr=False)


def read_settings(path: Path) -> JsonObject:
    """Return an adapter's settings.

    Raises:
        AdapterError: They cannot be read, or are not JSON objects.
    """
    return read_table(
        path,
        _SETTINGS_LIMIT_BYTES,
        AdapterError,
        absent="Check the path and its permissions.",
        damaged="Copy the adapter again.",
    )


def require_short_names(tensors: Iterable[str], source: str) -> None:
    """Require that tensors have names of bounded length: they are matched with expressions.

    Raises:
        AdapterError: One is longer than any path of a module.
    """
    long = next((name for name in tensors if len(name) > _NAME_LIMIT), None)
    if long is not None:
        msg = f"adapter {source!r} holds a tensor whose name has {len(long)} characters: "
        raise AdapterError(msg + shown(long), hint="The file is damaged: copy it again.")


def finish(
    opened: Opened,
    kind: str,
    low_rank: Sequence[LowRank],
    *,
    saved: Sequence[Saved] = (),
    repeated: Sequence[str] = (),
    base_name: object = None,
) -> Adapter:
    """Return the canonical adapter of these parts, hashed over the files it was read from.

    Raises:
        AdapterError: It holds no update.
    """
    if not low_rank:
        msg = f"adapter {opened.source!r} has no low-rank update"
        raise AdapterError(msg, hint="It was saved before training, or is of another format.")
    files = (each for each in (opened.settings, opened.weights) if each is not None)
    return Adapter(
        name=opened.name,
        source=opened.source,
        folder=opened.place,
        format=kind,
        low_rank=tuple(low_rank),
        saved=tuple(saved),
        task_type=None,
        base_name=base_name if isinstance(base_name, str) else None,
        sha256=sha256_of_files(files),
        config=opened.config,
        repeated=tuple(repeated),
    )


def require_pair(
    factors: Mapping[str, Tensor], names: tuple[str, str], module: str, source: str
) -> tuple[Tensor, Tensor]:
    """Return the two factors of `module`, required to be there, matrices, and floating-point.

    Raises:
        AdapterError: One is missing, empty, or holds integers.
        UnsupportedError: One is not a matrix (a convolution, a stack of experts).
    """
    first, second = (factors.get(name) for name in names)
    if first is None or second is None:
        held = " and ".join(sorted(factors))
        msg = f"module {module!r} of adapter {source!r} has only {held}"
        raise AdapterError(msg, hint=f"An update needs both {names[0]} and {names[1]}.")
    for tensor in (first, second):
        if not tensor.dtype.floating:
            msg = f"tensor {tensor.name!r} of adapter {source!r} has the dtype {tensor.dtype.name}"
            raise AdapterError(msg, hint="An adapter's tensors are floating-point numbers.")
        if len(tensor.shape) != 2:  # noqa: PLR2004  (matrices)
            msg = f"tensor {tensor.name!r} of adapter {source!r} has {len(tensor.shape)} axes"
            raise UnsupportedError(
                msg, hint="Of this format only updates of matrices are read; convert it to PEFT."
            )
        if 0 in tensor.shape:
            msg = f"tensor {tensor.name!r} of adapter {source!r} is empty: {list(tensor.shape)}"
            raise AdapterError(msg, hint="The adapter is damaged: save or copy it again.")
    return first, second


def require_rank(a_rank: int, b_rank: int, module: str, source: str) -> int:
    """Return the rank that both factors have.

    Raises:
        AdapterError: They differ.
    """
    if a_rank != b_rank:
        msg = f"module {module!r} of adapter {source!r}: A has rank {a_rank}, B has {b_rank}"
        raise AdapterError(msg, hint="The adapter is damaged: save or copy it again.")
    return a_rank


def finite_number(value: object, what: str, source: str) -> float:
    """Return `value` as a float.

    Raises:
        AdapterError: It is not a number, or not a finite one.
    """
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not abs(value) <= _NUMBER_LIMIT:  # type: ignore[arg-type]
        msg = f"adapter {source!r} has {what} {shown(value, 40)}"
        raise AdapterError(msg, hint="It must be a finite number.")
    number = float(value)  # type: ignore[arg-type]
    assert math.isfinite(number)  # noqa: S101  (the limit says so)
    return number


def given_alpha(alpha: float | None, source: str) -> float | None:
    """Return the alpha that the user gave.

    Raises:
        UsageError: It is not a finite number.
    """
    if alpha is not None and not abs(alpha) <= _NUMBER_LIMIT:
        msg = f"the alpha {alpha!r} for adapter {source!r} is not a finite number"
        raise UsageError(msg, hint="Give the alpha that it was trained with: --alpha 16")
    return alpha


def scalar(tensor: Tensor, source: str) -> float:
    """Return the one number that `tensor` holds.

    Raises:
        AdapterError: It holds more, or something that is not a finite number.
    """
    if math.prod(tensor.shape) != 1 or not (tensor.dtype.floating or tensor.dtype.name == "int64"):
        msg = f"tensor {tensor.name!r} of adapter {source!r} is not a single number"
        raise AdapterError(msg, hint="The file is damaged: copy it again.")
    value = float(to_float32(read_all(tensor)).reshape(-1)[0])
    return finite_number(value, f"in {tensor.name!r} the number", source)


def derived(tensor: Tensor, values: npt.NDArray[Any]) -> MemoryTensor:
    """Return `values`, which were made from `tensor`, under its name and dtype."""
    return MemoryTensor(tensor.name, tensor.dtype, np.ascontiguousarray(values))


def transposed(tensor: Tensor) -> MemoryTensor:
    """Return the transpose of a matrix, in memory."""
    return derived(tensor, read_all(tensor).T)


def is_embedding(module: str) -> bool:
    """Whether `module` is called what embeddings are called."""
    return module.rpartition(".")[2] in _EMBEDDINGS
