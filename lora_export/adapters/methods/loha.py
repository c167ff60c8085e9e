"""LoHa: the Hadamard product of two low-rank products (FedPara, arXiv 2108.06098, section 2.2).

    linear       ΔW = s · (w1_a w1_b) ∘ (w2_a w2_b)      w_a [out, r], w_b [r, in]
    effective    ΔW = s · (t1 ×₁ w1_a ×₂ w1_b) ∘ (t2 ×₁ w2_a ×₂ w2_b)
                                                        t [r, r, kernel], w_a [r, out], w_b [r, in]

``s = alpha / r``. A convolution without ``use_effective_conv2d`` is the first form with
``in · kernel`` inputs; the second is that of ``hada_t1`` and ``hada_t2`` (proposition 3). Rows of
ΔW are computed block by block in float32. As in PEFT 0.21, ``peft/tuners/loha/layer.py``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Computed
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method, matrix_misfit, rows_of
from lora_export.adapters.methods.scaling import lycoris_scale
from lora_export.adapters.product import thin_product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.canonical import Transform
    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter

__all__ = ["LOHA"]

_FACTORS: Final = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES: Final = ("hada_t1", "hada_t2")
_MATRIX: Final = 2
_CORE_AXES: Final = 4


def _read(module: AdaptedModule) -> Iterator[Computed]:
    effective = any(name in module.tensors for name in _CORES)
    names = (*_FACTORS, *_CORES) if effective else _FACTORS
    tensors = module.require(*names)
    module.require_only(*names)
    w1_a, w1_b, w2_a, w2_b = (tensor.shape for tensor in tensors[:4])
    if any(len(shape) != _MATRIX for shape in (w1_a, w1_b, w2_a, w2_b)):
        raise module.shapes_error(*_FACTORS)
    if effective:
        rank, outputs, inputs, kernel = w1_a[0], w1_a[1], w1_b[1], tensors[4].shape[2:]
        cores = [tensor.shape for tensor in tensors[4:]]
        whole = all(len(shape) == _CORE_AXES for shape in cores)
        fits = whole and cores[0] == cores[1] and cores[0][:2] == (rank, rank)
        fits = fits and w1_b[0] == rank
    else:
        (outputs, rank), inputs, kernel = w1_a, w1_b[1], ()
        fits = w1_b[0] == rank
    if not fits or rank == 0 or (w1_a, w1_b) != (w2_a, w2_b):
        raise module.shapes_error(*names)
    scale = np.float32(lycoris_scale(module, rank))

    def transform(parameter: Parameter) -> Transform:
        parts = [read_finite(tensor) for tensor in tensors]
        halves = (parts[:2], parts[2:4])

        def rows(start: int, stop: int) -> Float32Array:
            if effective:
                one, two = (
                    _effective(core, a[:, start:stop], b)
                    for core, (a, b) in zip(parts[4:], halves, strict=True)
                )
            else:
                one, two = (thin_product(a[start:stop], b) for a, b in halves)
            one *= two
            one *= scale
            return one

        return rows_of(parameter, rows)

    yield Computed(
        f"{module.path}.weight",
        "LOHA",
        tensors,
        matrix_misfit(outputs, inputs * prod(kernel), conv1d=False),
        transform,
        outputs=outputs,
        inputs=inputs,
    )


def _effective(core: Float32Array, a: Float32Array, b: Float32Array) -> Float32Array:
    """Return ``Σᵢⱼ core[i, j, …] a[i, p] b[j, q]`` as ``[p, q · kernel]``."""
    product = np.asarray(np.einsum("ijkl,jr,ip->prkl", core, b, a, optimize=True), np.float32)
    return product.reshape(len(product), -1)


LOHA: Final = Method("LoHa", frozenset({*_FACTORS, *_CORES}), _read)
