"""VeRA: two random matrices that all modules share, scaled by trained vectors (arXiv 2310.11454).

    ΔW = diag(b) B[:out] · diag(d) A[:, :in]      A [r, largest in], B [largest out, r]
                                                  d = vera_lambda_d [r], b = vera_lambda_b [out]

The update is a product of rank r. A and B are in the file (``base_model.vera_A``), or with
``save_projection: false`` drawn again from ``projection_prng_key`` as PEFT draws them: uniformly
within ``±sqrt(6 / columns)``, A first, as large as the largest of the modules needs. As in PEFT
0.21, ``peft/tuners/vera/layer.py`` and ``model.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Computed, LowRank, Transform
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method
from lora_export.adapters.methods.torch_random import TorchRandom
from lora_export.core.dtypes import DTYPES
from lora_export.core.tensors import ComposedTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["VERA"]

_VECTORS: Final = ("vera_lambda_b", "vera_lambda_d")
_SHARED: Final = ("vera_A", "vera_B")
_MATRIX: Final = 2
_RANK: Final = 256
_SAVED: Final = True
"""PEFT's default of ``save_projection``."""


def _read(module: AdaptedModule) -> Iterator[Computed]:
    b, d = module.require(*_VECTORS)
    rank = module.setting("r", _RANK)
    if len(b.shape) != 1 or d.shape != (rank,):
        raise module.error(
            f"vera_lambda_b {list(b.shape)} and vera_lambda_d {list(d.shape)} "
            f"are not those of r: {rank}"
        )
    outputs = b.shape[0]
    stored = _stored(module, rank, outputs)

    def misfit(weight: Parameter) -> str | None:
        shape = _outputs_first(weight)
        if len(shape) != _MATRIX or shape[0] != outputs:
            return f"the update has {outputs} outputs, the weight is {list(weight.shape)}"
        if stored and shape[1] > stored[0].shape[1]:
            return f"vera_A has {stored[0].shape[1]} inputs, the weight is {list(weight.shape)}"
        return None

    def product(weight: Parameter, every: Sequence[Parameter]) -> LowRank:
        inputs = _outputs_first(weight)[1]
        if stored:
            matrices = _slices(stored, inputs, outputs)
        else:
            largest = [max(sizes) for sizes in zip(*map(_outputs_first, every), strict=True)]
            matrices = _drawn(module, rank, largest, inputs, outputs)
        sources = (d, b) if not stored else (d, b, *stored)
        name, float32 = f"{module.path}.vera_lambda", DTYPES["float32"]
        a_rows = ComposedTensor(
            f"{name}_d", float32, (rank, inputs), sources,
            lambda: read_finite(d)[:, None] * matrices[0](),
        )  # fmt: skip
        b_rows = ComposedTensor(
            f"{name}_b", float32, (outputs, rank), sources,
            lambda: read_finite(b)[:, None] * matrices[1](),
        )  # fmt: skip
        return LowRank(weight.name.removesuffix(".weight"), a_rows, b_rows, 1.0)

    yield Computed(
        f"{module.path}.weight",
        "VERA",
        (b, d, *stored),
        misfit,
        _no_transform,
        product,
        outputs=outputs,
    )


def _no_transform(_: Parameter) -> Transform:
    raise AssertionError  # an update that is a product is resolved to one


def _outputs_first(weight: Parameter) -> tuple[int, ...]:
    return weight.shape[::-1] if weight.module_type == "Conv1D" else weight.shape


def _stored(module: AdaptedModule, rank: int, outputs: int) -> tuple[Tensor, ...]:
    """Return A and B of the file; none where the config has them drawn from the seed."""
    saved = module.setting("save_projection", _SAVED)
    held = tuple(module.shared[name] for name in _SHARED if name in module.shared)
    if not saved and not held:
        return ()
    if len(held) < len(_SHARED):
        said = "true" if saved else "false"
        missing = next(name for name in _SHARED if name not in module.shared)
        raise module.error(f"save_projection is {said}, and {missing} is missing")
    a, b = held
    matrices = len(a.shape) == len(b.shape) == _MATRIX
    if not matrices or a.shape[0] != rank or b.shape[1] != rank or b.shape[0] < outputs:
        raise module.error(
            f"vera_A {list(a.shape)} and vera_B {list(b.shape)} do not go with r: {rank} "
            f"and {outputs} outputs"
        )
    return held


def _slices(
    stored: tuple[Tensor, ...], inputs: int, outputs: int
) -> tuple[Callable[[], Float32Array], Callable[[], Float32Array]]:
    a, b = stored
    return lambda: read_finite(a)[:, :inputs], lambda: read_finite(b)[:outputs]


def _drawn(
    module: AdaptedModule, rank: int, largest: Sequence[int], inputs: int, outputs: int
) -> tuple[Callable[[], Float32Array], Callable[[], Float32Array]]:
    """Return A and B as PEFT draws them, cut to a weight of `inputs` and `outputs`."""
    most_outputs, most_inputs = largest
    seed = module.setting("projection_prng_key", 0)

    def draw() -> tuple[Float32Array, Float32Array]:
        random = TorchRandom(seed)
        shapes = (rank, most_inputs), (most_outputs, rank)
        bounds = [math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1])) for shape in shapes]
        a, b = (
            random.uniform(-bound, bound, shape)
            for bound, shape in zip(bounds, shapes, strict=True)
        )
        return a, b

    return (
        lambda: np.ascontiguousarray(draw()[0][:, :inputs]),
        lambda: np.ascontiguousarray(draw()[1][:outputs]),
    )


VERA: Final = Method("VeRA", frozenset(_VECTORS), _read, frozenset(_SHARED))
