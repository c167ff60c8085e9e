r"""Whether a base is the residual one that a PiSSA or OLoRA adapter was trained on.

Both initialisations move a part of the base into the adapter: ``W_res = W - s·B0 A0``. On W_res the
adapter is a plain LoRA; on W that part would count twice. Training moves A and B little, so that
the part of a weight M that lies in the span of B's columns tells the two apart. With P the
projection onto that span, P M is near ``κ·B A``:

                                                        M = W_res     M = W
    PiSSA (arXiv 2404.02948, equation 2): U S V, split      0            s
    OLoRA (arXiv 2406.01775, algorithm 1): Q R, unscaled    1 - s        1

What a hypothesis leaves over is measured against what any r directions of M would hold:

    z = ‖P M - κ·B A‖² / ((r / out)·‖M‖²)

z is 0 right after the initialisation for the true hypothesis and stays under 1 for it. A base is
taken for the residual one where z(residual) ≤ ½ and 4·z(residual) ≤ z(original) in every layer that
is examined; it is called the original where 4·z(original) ≤ z(residual) in all of them; everything
else is undecided, and refused too. For PiSSA the rows of A are used in the same way, and the side
that fits better counts (a randomised PiSSA, ``pissa_niter_N``, empties one side exactly and the
other nearly). OLoRA's A is the first r rows of R, whose span its residual does not avoid.

Measured for PiSSA with PEFT on a tiny Llama with random weights, r = 8, s in 1 and 2 (½ without
training), AdamW at 1e-3: after 0 and 20 steps z(residual) is 0.00 to 0.16 on the residual base and
at least 1.9 on the original; after 100 steps it is 0.5 to 0.7 on the residual, where such adapters
are refused as undecided, and at least 1.6 on the original. ``pissa_niter_N`` and OLoRA were tried
after five steps only (``tests/weights/test_residual.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.dtypes import to_float32
from lora_export.core.errors import UnsupportedError
from lora_export.core.tensors import bytes_of, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.adapters.canonical import LowRank
    from lora_export.adapters.resolve import Resolved, Update
    from lora_export.core.tensors import Tensor

__all__ = ["require_residual_base"]

_LAYERS_LIMIT: Final = 8
_BLOCK_BYTES: Final = 1 << 22
_MATRIX: Final = 2
_FITS: Final = 0.5
_CLEARLY: Final = 4.0

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Evidence:
    """The remainder of each hypothesis in one layer: the z of both."""

    module: str
    residual: float
    original: float

    @property
    def is_residual(self) -> bool:
        return self.residual <= _FITS and _CLEARLY * self.residual <= self.original

    @property
    def is_original(self) -> bool:
        return _CLEARLY * self.original <= self.residual


def require_residual_base(
    resolved: Resolved, tensors: Mapping[str, Tensor], base: str, *, stored: bool = False
) -> None:
    """Require the residual base, where the adapter needs one.

    At most eight layers are examined, spread evenly; a few megabytes are held at once.

    Args:
        resolved: The adapter; nothing happens unless its initialisation changed its base.
        tensors: The base's tensors by the names of the parameters.
        base: What the user calls the base, for the message.
        stored: Whether the tensors are in the graph's layout, as an export holds them.

    Raises:
        UnsupportedError: It is the original base, or is unknown.
    """
    adapter = resolved.adapter
    if adapter.residual is None:
        return
    if any(update.parameter in resolved.dropped for update in adapter.low_rank):
        msg = f"adapter {adapter.source!r} holds a part of its base ({adapter.residual})"
        raise UnsupportedError(msg, hint="None of its updates can be left out with --drop.")
    updates = [
        update
        for update in resolved.updates
        if update.low_rank is not None
        and update.saved is None
        and not update.low_rank.embedding
        and len(update.parameter.shape) == _MATRIX
        and update.parameter.name in tensors
    ]
    step = max(1, -(-len(updates) // _LAYERS_LIMIT))
    found = [
        _examine(update, tensors[update.parameter.name], adapter.residual, stored=stored)
        for update in updates[::step]
    ]
    if found and all(each.is_residual for each in found):
        return
    start = f"adapter {adapter.source!r} has init_lora_weights: {adapter.residual!r}"
    if found and all(each.is_original for each in found):
        least = min(found, key=lambda each: each.residual)
        msg = (
            f"{start}: it was trained on a base from which its first update had been taken off, "
            f"and {base!r} is the base before that ({_figures(least)})"
        )
    else:
        worst = max(found, key=lambda each: each.residual, default=None)
        figures = "no layer can be examined" if worst is None else _figures(worst)
        msg = f"{start}: whether {base!r} is the base that it was trained on is open ({figures})"
    raise UnsupportedError(
        msg,
        hint="Convert it where it was trained: save_pretrained(…, "
        "path_initial_model_for_weight_conversion=…); or give the residual base, as "
        "peft_model.unload() leaves it.",
    )


def _figures(each: _Evidence) -> str:
    return (
        f"{each.module}: the residual base leaves {each.residual:.2g} unexplained, the original "
        f"{each.original:.2g}; 0 is a perfect fit, 1 none"
    )


def _examine(update: Update, weight: Tensor, start: str, *, stored: bool) -> _Evidence:
    low_rank = update.low_rank
    assert low_rank is not None  # noqa: S101  (by the caller)
    s = low_rank.scale
    olora = start.lower() == "olora"
    kappas = (1.0 - s, 1.0) if olora else (0.0, s)
    input_first = (update.parameter.module_type == "Conv1D") != (
        stored and update.parameter.transposed
    )
    outputs, inputs = _leftovers(low_rank, weight, kappas, input_first=input_first)
    better = outputs if olora else min(outputs, inputs)
    return _Evidence(low_rank.module, *better)


def _leftovers(
    low_rank: LowRank, weight: Tensor, kappas: tuple[float, float], *, input_first: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return z of both hypotheses in the span of B's columns, and in that of A's rows.

    M ``[m, n]`` is compared with ``κ·L R``; L ``[m, r]`` and R ``[r, n]`` are B and A, or their
    transposes where M is stored ``[in, out]``.
    """
    a, b = _float64(low_rank.a), _float64(low_rank.b)  # (r, in), (out, r)
    left, right = (a.T, b.T) if input_first else (b, a)
    rows_basis, rows_factor = np.linalg.qr(left)  # (m, k), (k, r)
    columns_basis, columns_factor = np.linalg.qr(right.T)  # (n, k), (k, r)
    projected = np.zeros((rows_basis.shape[1], right.shape[1]))
    over_columns = [0.0, 0.0]
    energy = 0.0
    for start, block in _rows(weight):
        part = slice(start, start + len(block))
        energy += float(np.vdot(block, block))
        projected += rows_basis[part].T @ block
        along = block @ columns_basis  # (rows, k)
        expected = left[part] @ columns_factor.T
        for index, kappa in enumerate(kappas):
            over_columns[index] += _squared(along - kappa * expected)
    expected = rows_factor @ right
    over_rows = [_squared(projected - kappa * expected) for kappa in kappas]
    m, n = weight.shape
    by_left = _shares(over_rows, energy * rows_basis.shape[1] / m)
    by_right = _shares(over_columns, energy * columns_basis.shape[1] / n)
    return (by_right, by_left) if input_first else (by_left, by_right)


def _shares(over: list[float], expected: float) -> tuple[float, float]:
    if expected == 0.0:
        return np.inf, np.inf
    return over[0] / expected, over[1] / expected


def _squared(values: _Array) -> float:
    return float(np.vdot(values, values))


def _float64(tensor: Tensor) -> _Array:
    return to_float32(read_all(tensor)).astype(np.float64)


def _rows(tensor: Tensor) -> Iterator[tuple[int, _Array]]:
    """Yield blocks of rows of a matrix in float64, each with the index of its first row."""
    rows, columns = tensor.shape
    row_bytes = prod((columns, tensor.dtype.itemsize_bytes))
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, rows, step):
        block: npt.NDArray[Any] = np.empty((min(step, rows - start), columns), tensor.dtype.numpy)
        tensor.read_into(bytes_of(block), start * row_bytes)
        yield start, to_float32(block).astype(np.float64)
