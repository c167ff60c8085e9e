"""LayerNorm tuning: the norms' parameters, trained and carried whole (arXiv 2312.11420).

    weight, bias    replaced by ``ln_tuning_layers.weight`` and ``ln_tuning_layers.bias``

PEFT copies the targeted module, whatever it is, and trains the copy. As in PEFT 0.21,
``peft/tuners/ln_tuning/layer.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import Saved
from lora_export.adapters.methods.interface import Method

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.methods.interface import AdaptedModule

__all__ = ["LN_TUNING"]

_COPY: Final = "ln_tuning_layers."


def _read(module: AdaptedModule) -> Iterator[Saved]:
    for name, tensor in sorted(module.tensors.items()):
        yield Saved(f"{module.path}.{name.removeprefix(_COPY)}", tensor)


LN_TUNING: Final = Method("LayerNorm tuning", frozenset({f"{_COPY}weight", f"{_COPY}bias"}), _read)
