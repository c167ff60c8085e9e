"""IA³: inputs or outputs multiplied by a learned vector (arXiv 2205.05638, section 3.3).

    feedforward_modules    W = W0 · diag(l)                       l: one number per input
    all others             W = diag(l) · W0,  b = l ∘ b0          l: one number per output

``ia3_l`` is ``[1, in]`` or ``[out, 1]``, of a convolution ``[1, n, 1, …]``; a convolution with
groups has each group's inputs in its rows. Rows are computed block by block in float32. As in
PEFT 0.21, ``peft/tuners/ia3/layer.py``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Computed, Transform
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method, in_outputs_first
from lora_export.core.bounded_match import matches
from lora_export.core.errors import AdapterError
from lora_export.core.patterns import PatternError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["IA3"]

_VECTOR: Final = "ia3_l"
_MATRIX: Final = 2


def _read(module: AdaptedModule) -> Iterator[Computed]:
    (vector,) = module.require(_VECTOR)
    forward = _is_feedforward(module)
    size = prod(vector.shape)
    line = (1, size) if forward or len(vector.shape) > _MATRIX else (size, 1)
    if len(vector.shape) < _MATRIX or vector.shape != (*line, *(1 for _ in vector.shape[2:])):
        kind = "one number per input" if forward else "one number per output"
        raise module.error(
            f"{_VECTOR} is {list(vector.shape)}, feedforward_modules makes it {kind}"
        )
    weight = f"{module.path}.weight"
    if forward:
        yield _of_inputs(weight, vector, size)
        return
    yield _of_outputs(weight, vector, size)
    yield _of_bias(f"{module.path}.bias", vector, size)


def _is_feedforward(module: AdaptedModule) -> bool:
    """Whether ``feedforward_modules`` means the module, as PEFT matches it."""
    setting = module.config.get("feedforward_modules") or []
    if not isinstance(setting, str):
        return any(module.path.endswith(name) for name in setting)
    try:
        return matches(setting, module.path)
    except PatternError as error:
        msg = f"feedforward_modules is {setting[:60]!r}, which cannot be used: {error}"
        raise AdapterError(msg, hint="The adapter's config is damaged.") from error


def _scaled_rows(vector: Tensor) -> Transform:
    """Return the transform that multiplies each row by its number."""
    factors = read_finite(vector).reshape(-1)

    def apply(rows: Float32Array, start: int) -> Float32Array:
        part = factors[start : start + len(rows)]
        return rows * part.reshape(-1, *(1 for _ in rows.shape[1:]))

    return Transform(apply)


def _of_outputs(parameter: str, vector: Tensor, size: int) -> Computed:
    def misfit(weight: Parameter) -> str | None:
        shape = weight.shape[::-1] if weight.module_type == "Conv1D" else weight.shape
        if len(shape) < _MATRIX or shape[0] != size:
            return f"the vector has {size} outputs, the weight is {list(weight.shape)}"
        return None

    def transform(weight: Parameter) -> Transform:
        return in_outputs_first(weight, _scaled_rows(vector))

    return Computed(parameter, "IA3", (vector,), misfit, transform, outputs=size)


def _of_bias(parameter: str, vector: Tensor, size: int) -> Computed:
    def misfit(bias: Parameter) -> str | None:
        if bias.shape == (size,):
            return None
        return f"the vector has {size} outputs, the bias is {list(bias.shape)}"

    return Computed(
        parameter, "IA3", (vector,), misfit, lambda _: _scaled_rows(vector), optional=True
    )


def _of_inputs(parameter: str, vector: Tensor, size: int) -> Computed:
    def groups_of(weight: Parameter) -> int:
        """Return the groups of a convolution: its rows hold the inputs of one."""
        shape = weight.shape[::-1] if weight.module_type == "Conv1D" else weight.shape
        kernel = len(shape) > _MATRIX
        whole = len(shape) >= _MATRIX and shape[1] > 0 and size % shape[1] == 0
        groups = size // shape[1] if whole else 0
        return groups if groups == 1 or (kernel and groups and shape[0] % groups == 0) else 0

    def misfit(weight: Parameter) -> str | None:
        if groups_of(weight):
            return None
        return f"the vector has {size} inputs, the weight is {list(weight.shape)}"

    def transform(weight: Parameter) -> Transform:
        groups = groups_of(weight)
        factors = read_finite(vector).reshape(groups, -1)  # (groups, in / groups)
        outputs = weight.shape[1] if weight.module_type == "Conv1D" else weight.shape[0]

        def apply(rows: Float32Array, start: int) -> Float32Array:
            group = np.arange(start, start + len(rows)) * groups // outputs
            part = factors[group]
            return rows * part.reshape(*part.shape, *(1 for _ in rows.shape[2:]))

        return in_outputs_first(weight, Transform(apply))

    return Computed(parameter, "IA3", (vector,), misfit, transform, inputs=size)


IA3: Final = Method("IA³", frozenset({_VECTOR}), _read)
