"""LoKr: the Kronecker product of two small matrices (LyCORIS, arXiv 2309.14859, section 3.3).

    ΔW = s · w1 ⊗ w2         w1 [a, c], w2 [b, d · kernel], out = a·b, in = c·d, s = alpha / r

Each of the two is stored whole (``lokr_w1``, ``lokr_w2``) or as the product of two factors of rank
r: w1 where ``decompose_both`` is set, w2 where r is less than half its longer side. A convolution
with ``use_effective_conv2d`` has a core ``lokr_t2`` ``[r, r, kernel]`` between its factors. Which
sizes a to d PEFT chooses follows from the weight and ``decompose_factor``. Row ``i·b + j`` of ΔW is
``w1[i] ⊗ w2[j]``: rows are computed block by block in float32. As in PEFT 0.21,
``peft/tuners/lokr/layer.py``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Computed
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method, rows_of
from lora_export.adapters.methods.scaling import lycoris_scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.adapters.canonical import Transform
    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["LOKR"]

_FIRST: Final = ("lokr_w1_a", "lokr_w1_b")
_SECOND: Final = ("lokr_w2_a", "lokr_w2_b")
_CORE: Final = "lokr_t2"
_NAMES: Final = frozenset({"lokr_w1", "lokr_w2", *_FIRST, *_SECOND, _CORE})
_MATRIX: Final = 2
_CONV1D_AXES: Final = 3
_CORE_AXES: Final = 4


def _read(module: AdaptedModule) -> Iterator[Computed]:
    names = _names(module)
    tensors = module.require(*names)
    module.require_only(*names)
    parts = dict(zip(names, tensors, strict=True))
    first, second, rank = _shapes(module, parts)
    scale = np.float32(lycoris_scale(module, rank))
    outputs, columns = first[0] * second[0], first[1] * prod(second[1:])
    factor = module.config.get("decompose_factor")

    def misfit(parameter: Parameter) -> str | None:
        shape = parameter.shape
        if parameter.module_type == "Conv1D":
            return "the module is a Conv1D, which PEFT does not adapt by this method"
        if len(shape) < _MATRIX or (shape[0], prod(shape[1:])) != (outputs, columns):
            return f"the update is {[outputs, columns]}, the weight {list(shape)}"
        rows, cols = (factorization(size, factor or -1) for size in shape[:2])
        if first != (rows[0], cols[0]):
            expected = [rows[0], cols[0]]
            return f"w1 is {list(first)}, decompose_factor: {factor} makes it {expected}"
        return None

    def transform(parameter: Parameter) -> Transform:
        values = {name: read_finite(tensor) for name, tensor in parts.items()}
        w1, w2 = _first(values), _second(values)
        if w2.ndim == _CONV1D_AXES:  # as torch.kron does it, which gives w1 an axis in front
            whole = np.kron(w1, w2).reshape(outputs, -1) * scale
            return rows_of(parameter, lambda start, stop: whole[start:stop].copy())
        kernel = prod(w2.shape[2:])
        blocks = w2.reshape(len(w2), 1, -1) * scale  # (b, 1, d · kernel)

        def rows(start: int, stop: int) -> Float32Array:
            index = np.arange(start, stop)
            left = w1[index // len(w2)][:, :, None]  # (n, c, 1)
            return (left * blocks[index % len(w2)]).reshape(stop - start, -1)

        assert kernel * w1.shape[1] * w2.shape[1] == columns  # noqa: S101  (see `_shapes`)
        return rows_of(parameter, rows)

    yield Computed(f"{module.path}.weight", "LOKR", tensors, misfit, transform, outputs=outputs)


def factorization(size: int, factor: int) -> tuple[int, int]:
    """Return two divisors of `size`, the smaller first, as PEFT chooses them.

    Args:
        size: The number of inputs or outputs.
        factor: ``decompose_factor``: the smaller divisor if it is one, else its largest value; -1
            takes the two that are nearest to each other.

    >>> factorization(128, -1), factorization(128, 4), factorization(127, -1)
    ((8, 16), (4, 32), (1, 127))
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor == -1 else factor
    small, large = 1, size
    length = small + large
    while small < large:
        new = next(each for each in range(small + 1, size + 1) if size % each == 0)
        if new + size // new > length or new > limit:
            break
        small, large = new, size // new
    return min(small, large), max(small, large)


def _names(module: AdaptedModule) -> tuple[str, ...]:
    """Return the names of the tensors that a module with these has to have."""
    held = module.tensors
    first = ("lokr_w1",) if "lokr_w1" in held else _FIRST
    if "lokr_w2" in held:
        return (*first, "lokr_w2")
    return (*first, *_SECOND, _CORE) if _CORE in held else (*first, *_SECOND)


def _shapes(
    module: AdaptedModule, parts: Mapping[str, Tensor]
) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    """Return the shapes of w1 and w2, and the rank of their factors."""
    shapes = {name: tensor.shape for name, tensor in parts.items()}
    matrices = (*_FIRST, *_SECOND, "lokr_w1")
    if any(len(shape) != _MATRIX for name, shape in shapes.items() if name in matrices):
        raise module.shapes_error(*parts)
    ranks: set[int] = set()
    first = shapes.get("lokr_w1", ())
    if not first:
        first = shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1]
        ranks |= {shapes["lokr_w1_a"][1], shapes["lokr_w1_b"][0]}
    second = shapes.get("lokr_w2", ())
    if _CORE in shapes:
        core, a, b = shapes[_CORE], shapes["lokr_w2_a"], shapes["lokr_w2_b"]
        if len(core) != _CORE_AXES:
            raise module.shapes_error(*parts)
        second = a[1], b[1], *core[2:]
        ranks |= {*core[:2], a[0], b[0]}
    elif not second:
        second = shapes["lokr_w2_a"][0], shapes["lokr_w2_b"][1]
        ranks |= {shapes["lokr_w2_a"][1], shapes["lokr_w2_b"][0]}
    if len(ranks) > 1 or 0 in ranks or not _MATRIX <= len(second) <= _CORE_AXES:
        raise module.shapes_error(*parts)
    return first, second, next(iter(ranks), None)


def _first(values: Mapping[str, Float32Array]) -> Float32Array:
    if "lokr_w1" in values:
        return values["lokr_w1"]
    return np.asarray(values["lokr_w1_a"] @ values["lokr_w1_b"])


def _second(values: Mapping[str, Float32Array]) -> Float32Array:
    if "lokr_w2" in values:
        return values["lokr_w2"]
    a, b = values["lokr_w2_a"], values["lokr_w2_b"]
    if _CORE in values:
        return np.asarray(np.einsum("ijkl,ip,jr->prkl", values[_CORE], a, b, optimize=True))
    return np.asarray(a @ b)


LOKR: Final = Method("LoKr", _NAMES, _read)
