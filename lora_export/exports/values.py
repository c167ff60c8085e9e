"""An adapter as values outside a merged graph: A, s·B, DoRA's factors, heads and biases.

Adapters of a swappable graph are packs of these values, those of a batched graph rows of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.adapters.delta import Factors, factors_of, read_finite
from lora_export.adapters.resolve import Update
from lora_export.core.dtypes import to_float32
from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import bytes_of, iter_blocks
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.graph.adapters.swappable_graph import input_a, input_b, input_magnitude
from lora_export.weights.stream import merged_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.adapters.canonical import Adapter, LowRank
    from lora_export.adapters.resolve import Resolved
    from lora_export.adapters.vocabulary import Vocabulary
    from lora_export.core.manifest import Manifest
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor


__all__ = [
    "origin_of",
    "refuse_computed",
    "refuse_unswappable",
    "refuse_vocabulary",
    "values_of",
    "without_copies",
]


def refuse_unswappable(update: Update) -> None:
    """Raise `UnsupportedError` for what adapters of one graph cannot differ in."""
    if update.computed is not None:
        raise _not_a_product(update.computed.method, update.parameter.name)
    kinds = {
        "replaces rows of": update.rows is not None,
        "updates stacked experts in": update.low_rank is not None and update.low_rank.name,
        "saves and then scales (DoRA)": update.saved is not None
        and update.low_rank is not None
        and update.low_rank.magnitude is not None,
    }
    for kind, found in kinds.items():
        if found:
            msg = f"an adapter {kind} {update.parameter.name!r}, which adapters of one graph cannot"
            raise UnsupportedError(msg, hint="Export merged graphs: --mode merged.")


def refuse_computed(adapter: Adapter) -> None:
    """Raise `UnsupportedError` for an adapter whose updates are no products.

    Raises:
        UnsupportedError: One is not.
    """
    for each in adapter.computed:
        if each.product is None:
            raise _not_a_product(adapter.method, each.parameter)


def _not_a_product(method: str, parameter: str) -> UnsupportedError:
    msg = (
        f"the update of {parameter!r} ({method}) is no product of two matrices, as those of a "
        "graph for several adapters are"
    )
    hint = (
        "Hold it as LoRA, with the loss measured: --as-rank 16 (with --base); or export merged "
        "graphs: --mode merged."
    )
    return UnsupportedError(msg, hint=hint)


def refuse_vocabulary(name: str, vocabulary: Vocabulary | None) -> None:
    """Raise `UnsupportedError` for an adapter that changes the number of tokens.

    The embeddings of a graph that adapters share have the base's rows.
    """
    if vocabulary is not None:
        msg = (
            f"adapter {name!r} {vocabulary.description} tokens; "
            "a graph for several adapters has a single vocabulary"
        )
        raise UnsupportedError(
            msg, hint="Export merged graphs, each with its own vocabulary: --mode merged."
        )


def without_copies(export_dir: Path, resolved: Resolved) -> Resolved:
    """Return the adapter without the parameters that it carries just as the base has them.

    PEFT saves an embedding or a head whole beside its update (``save_embedding_layers``): a copy of
    the base's, which would be in every pack and in every row.

    Args:
        export_dir: The export directory.
        resolved: The adapter, resolved against the export's parameters.

    Raises:
        AdapterError: A tensor holds NaN or infinity.
        UnsupportedError: The adapter changes the number of tokens.
    """
    refuse_vocabulary(resolved.adapter.name, resolved.vocabulary)
    stored, _ = read_header(resolve_inside(export_dir, BASE_WEIGHTS))
    updates = (
        replace(each, saved=None) if _is_copy(each, stored.get(each.parameter.name)) else each
        for each in resolved.updates
    )
    kept = tuple(each for each in updates if each.saved is not None or each.changes_value)
    return replace(resolved, updates=kept)


def _is_copy(update: Update, base: Tensor | None) -> bool:
    """Whether an adapter's own value of a parameter is the base's, as the export stores it."""
    if base is None or update.saved is None or update.saved.tensor.shape != update.parameter.shape:
        return False
    done = 0
    for block in merged_entry(Update(update.parameter, saved=update.saved), None,
                              base_is_stored=True).blocks():  # fmt: skip
        own = bytes_of(np.ascontiguousarray(block))
        other = bytearray(len(own))
        base.read_into(memoryview(other), done)
        if own != other:
            return False
        done += len(own)
    return True


def values_of(update: Update, base: Tensor | None) -> dict[str, Callable[[], npt.NDArray[Any]]]:
    """Return functions that compute each input of an update, low-rank ones in float32.

    Args:
        update: What an adapter does to one parameter.
        base: The base's value, as the export stores it.
    """
    parameter, low_rank = update.parameter, update.low_rank
    name = parameter.name
    found: dict[str, Callable[[], npt.NDArray[Any]]] = {}
    if update.saved is not None or update.added is not None:
        whole = merged_entry(replace(update, low_rank=None), base, base_is_stored=True)
        found[name] = lambda: np.concatenate([np.atleast_1d(each) for each in whole.blocks()])
    if low_rank is not None:
        scale = np.float32(low_rank.scale)
        found[input_a(name)] = lambda: read_finite(low_rank.a).T
        found[input_b(name)] = lambda: read_finite(low_rank.b).T * scale
        if low_rank.magnitude is not None:
            found[input_magnitude(name)] = lambda: _magnitude(low_rank, parameter, base)
    return found


def _magnitude(
    low_rank: LowRank, parameter: Parameter, base: Tensor | None
) -> npt.NDArray[np.float32]:
    """Return ``m / ‖W0 + s·B A‖``, one number per output (arXiv 2402.09353, equation 5)."""
    if base is None or low_rank.magnitude is None:
        msg = f"{BASE_WEIGHTS} has no tensor {parameter.name!r}"
        raise ExportDirectoryError(msg, hint="The export is damaged; export again.")
    factors = factors_of(low_rank, parameter, transposed=parameter.transposed)
    assert isinstance(factors, Factors)  # noqa: S101  (see `refuse_unswappable`)
    lengths = factors.lengths(_rows(base))
    return (read_finite(low_rank.magnitude).reshape(-1) / lengths).astype(np.float32)


def _rows(tensor: Tensor) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """Yield a stored matrix in blocks of rows, in float32, each with the index of its first row."""
    row_bytes = tensor.shape[1] * tensor.dtype.itemsize_bytes
    step = max(1, (1 << 24) // row_bytes)
    for index, block in enumerate(iter_blocks(tensor, step * row_bytes)):
        rows = np.frombuffer(block, tensor.dtype.numpy).reshape(-1, tensor.shape[1])
        yield to_float32(rows), index * step


def origin_of(manifest: Manifest, resolved: Resolved) -> str:
    """Return whose values an adapter's depend on: the checkpoint's, or cast ones of the export."""
    cast_names = {
        use.initializer for uses in manifest.parameters.values() for use in uses
        if "cast" in use.transform
    }  # fmt: skip
    dependent = any(
        update.parameter.name in cast_names
        and (update.added or (update.low_rank and update.low_rank.magnitude))
        for update in resolved.updates
    )
    return "export" if dependent else "checkpoint"
