"""HRA: a weight reflected by a chain of Householder matrices (arXiv 2405.17484, section 3.2).

    W = W0 · H₁ H₂ … Hᵣ          Hᵢ = I − 2 uᵢuᵢᵀ,  uᵢ a column of hra_u [in · kernel, r] / length

With ``apply_GS`` the columns are made orthogonal first (Gram and Schmidt), and the product is
``I − 2 U Uᵀ``. Each row of W is a row of W0 reflected: rows are computed block by block in float32,
and the matrix of ``in · in`` is never formed. As in PEFT 0.21, ``peft/tuners/hra/layer.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Computed, Transform
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method, inputs_misfit

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter

__all__ = ["HRA"]

_COLUMNS: Final = "hra_u"
_MATRIX: Final = 2


def _read(module: AdaptedModule) -> Iterator[Computed]:
    (columns,) = module.require(_COLUMNS)
    rank = module.config.get("r")
    if len(columns.shape) != _MATRIX or columns.shape[1] != rank or rank < 1:
        raise module.error(f"{_COLUMNS} is {list(columns.shape)}, its config says r: {rank}")
    orthogonal = bool(module.config.get("apply_GS"))

    def transform(_: Parameter) -> Transform:
        u = _units(read_finite(columns).astype(np.float64), orthogonal=orthogonal)

        def apply(rows: Float32Array, _: int) -> Float32Array:
            new = rows.reshape(len(rows), -1).astype(np.float64)
            if orthogonal:
                new -= 2 * (new @ u) @ u.T
            else:
                for each in u.T:
                    new -= 2 * np.outer(new @ each, each)
            return new.astype(np.float32).reshape(rows.shape)

        return Transform(apply)

    yield Computed(
        f"{module.path}.weight",
        "HRA",
        (columns,),
        inputs_misfit(columns.shape[0]),
        transform,
        inputs=columns.shape[0],
    )


def _units(u: npt.NDArray[np.float64], *, orthogonal: bool) -> npt.NDArray[np.float64]:
    """Return the columns with the length 1; orthogonal to those before them where asked."""
    if orthogonal:
        for index in range(u.shape[1]):
            before = u[:, :index]
            for each in before.T:
                u[:, index] -= (each @ u[:, index]) * each
            u[:, index] /= np.linalg.norm(u[:, index])
        return u
    units: npt.NDArray[np.float64] = u / np.linalg.norm(u, axis=0)
    return units


HRA: Final = Method("HRA", frozenset({_COLUMNS}), _read)
