"""Trained rows of an embedding, the others as the base has them.

    W[token_indices] = trainable_tokens_delta        [tokens, width]

A tied output embedding follows. As in PEFT 0.21, ``peft/tuners/trainable_tokens/layer.py``; LoRA's
``trainable_token_indices`` is the same beside updates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Rows
from lora_export.adapters.methods.interface import Method
from lora_export.core.tensors import ComposedTensor, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.methods.interface import AdaptedModule

__all__ = ["TRAINABLE_TOKENS"]

_ROWS: Final = "trainable_tokens_delta"
_MATRIX: Final = 2


def _read(module: AdaptedModule) -> Iterator[Rows]:
    (rows,) = module.require(_ROWS)
    listed = module.setting("token_indices", [])
    if not listed or min(listed) < 0 or len(set(listed)) != len(listed):
        raise module.error("its config has no list of rows: token_indices")
    if len(rows.shape) != _MATRIX or rows.shape[0] != len(listed):
        raise module.error(f"{_ROWS} is {list(rows.shape)} for {len(listed)} token_indices")
    order = np.argsort(listed)
    values = ComposedTensor(
        rows.name, rows.dtype, rows.shape, (rows,), lambda: read_all(rows)[order]
    )
    yield Rows(f"{module.path}.weight", tuple(sorted(listed)), values)


TRAINABLE_TOKENS: Final = Method("trained tokens", frozenset({_ROWS}), _read)
