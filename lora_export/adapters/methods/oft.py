"""OFT: a weight whose inputs are rotated, block by block (arXiv 2306.07280, section 3; 2506.19847).

    W = W0 · diag(R₁, …, Rₖ)ᵀ         linear and convolution: inputs, the kernel's axes included
    W = W0 · diag(R₁, …, Rₖ)          embedding: its width
    R = (I + Q)⁻¹ (I − Q) approximated as I + 2Q + 2Q² + … + Qⁿ⁻¹ (``use_cayley_neumann``), or exact

Q is skew-symmetric, ``oft_R.weight`` ``[k, b(b−1)/2]`` its upper triangle by rows; k is 1 with
``block_share``. ``coft`` limits the length of Q to ``eps / sqrt(k)``. Each row of W is a row of W0
rotated: rows are computed block by block in float32. As in PEFT 0.21, ``peft/tuners/oft/layer.py``,
which rotates a convolution's overlapping patches of the input in its forward: for a kernel larger
than 1 that is not the model that its merge gives, and such a module is refused.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Computed, Transform
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method, inputs_misfit
from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter

__all__ = ["OFT"]

_ROTATION: Final = "oft_R.weight"
_OF_EMBEDDING: Final = "oft_embedding_R.weight"
_EPS: Final = 6e-5
_TERMS: Final = 5
_MATRIX: Final = 2


def _read(module: AdaptedModule) -> Iterator[Computed]:
    embedding = _OF_EMBEDDING in module.tensors
    name = _OF_EMBEDDING if embedding else _ROTATION
    (tensor,) = module.require(name)
    module.require_only(name)
    shared = bool(module.config.get("block_share"))
    if len(tensor.shape) != _MATRIX or 0 in tensor.shape or (shared and tensor.shape[0] != 1):
        raise module.error(f"{name} is {list(tensor.shape)}, its config says block_share: {shared}")
    count, elements = tensor.shape
    size = (1 + isqrt(1 + 8 * elements)) // 2
    if size * (size - 1) // 2 != elements:
        raise module.error(f"{name} is {list(tensor.shape)}: {elements} are no upper triangle")
    _require_settings(module, count, size, shared=shared)

    def misfit(weight: Parameter) -> str | None:
        if embedding != (weight.module_type == "Embedding"):
            return f"the module is a {weight.module_type}"
        if any(length > 1 for length in weight.shape[2:]):
            msg = f"adapter {module.source!r} rotates the convolution {module.path!r} (OFT)"
            raise UnsupportedError(
                f"{msg}: PEFT's unmerged layer sums overlapping patches, which no weight does",
                hint="Train without this module.",
            )
        return inputs_misfit(size if shared else count * size, multiple=shared)(weight)

    def transform(_: Parameter) -> Transform:
        rotations = _rotations(module, read_finite(tensor), size)
        if not embedding:
            rotations = np.ascontiguousarray(rotations.transpose(0, 2, 1))

        def apply(rows: Float32Array, _: int) -> Float32Array:
            blocks = rows.reshape(len(rows), -1, size)  # (n, k, b)
            if len(rotations) == 1:
                return np.asarray(blocks @ rotations[0]).reshape(rows.shape)
            turned = np.matmul(blocks.transpose(1, 0, 2), rotations)  # (k, n, b)
            return np.ascontiguousarray(turned.transpose(1, 0, 2)).reshape(rows.shape)

        return Transform(apply)

    yield Computed(
        f"{module.path}.weight",
        "OFT",
        (tensor,),
        misfit,
        transform,
        inputs=None if shared or embedding else count * size,
        embedding=embedding,
    )


def _require_settings(module: AdaptedModule, count: int, size: int, *, shared: bool) -> None:
    """Require that the config's block size or number of blocks is that of the tensors.

    PEFT takes the nearest that divides the inputs, so that only a value that divides them decides.
    """
    inputs = count * size
    wanted = module.setting("oft_block_size", 0), module.setting("r", 0)
    if shared:
        return
    for value, own, what in ((wanted[0], size, "oft_block_size"), (wanted[1], count, "r")):
        if value and inputs % value == 0 and value != own:
            raise module.error(f"{_ROTATION} has {count} blocks of {size}, {what} is {value}")


def _rotations(module: AdaptedModule, triangles: Float32Array, size: int) -> Float32Array:
    """Return R of each block, ``[k, b, b]``."""
    config = module.config
    skew = np.zeros((len(triangles), size, size), np.float64)
    upper = np.triu_indices(size, 1)
    skew[:, upper[0], upper[1]] = triangles
    skew -= skew.transpose(0, 2, 1)
    if config.get("coft"):
        limit = float(module.setting("eps", _EPS)) / np.sqrt(len(skew))
        length = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
        skew *= np.where(length <= limit, 1.0, limit / np.maximum(length, 1e-300))
    identity = np.broadcast_to(np.eye(size), skew.shape)
    if not module.setting("use_cayley_neumann", default=True):
        solved = np.linalg.solve((identity + skew).transpose(0, 2, 1),
                                 (identity - skew).transpose(0, 2, 1))  # fmt: skip
        return np.asarray(solved.transpose(0, 2, 1), np.float32)
    terms = int(module.setting("num_cayley_neumann_terms", _TERMS))
    total = identity.copy()
    if terms > 1:
        total += 2.0 * skew
    if terms > 2:  # noqa: PLR2004  (PEFT's series: its last term counts once)
        power = skew @ skew
        total += 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            total += 2.0 * power
        total += power @ skew
    return np.asarray(total, np.float32)


OFT: Final = Method("OFT", frozenset({_ROTATION, _OF_EMBEDDING}), _read)
