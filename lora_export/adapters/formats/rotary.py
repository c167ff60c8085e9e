"""The rows of q and k in Llama's two rotary layouts.

Rotary embeddings (arXiv 2104.09864, equation 34) turn pairs of a head's rows by the same angle.
Hugging Face pairs row i with row ``i + d/2`` (halves); Meta, torchtune and llama.cpp's Llama pair
row 2i with row ``2i + 1`` (neighbours). Their files hold the same rows in another order, those of a
LoRA's B and of a DoRA's magnitude included: the shapes fit either way, the results do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.adapters.formats.open_archive import derived
from lora_export.core.errors import AdapterError
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.tensors import MemoryTensor, Tensor

__all__ = ["head_count", "in_halves", "text_config"]


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the language model, which some bases keep in a table of its own."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def head_count(config: Mapping[str, Any], projection: str) -> int | None:
    """Return how many heads ``q`` or ``k`` has by the base's config; None where it is silent."""
    settings = text_config(config)
    heads = settings.get("num_attention_heads")
    if projection == "k":
        heads = settings.get("num_key_value_heads") or heads
    usable = isinstance(heads, int) and not isinstance(heads, bool) and heads > 0
    return heads if usable else None


def in_halves(tensor: Tensor, heads: int, source: str) -> MemoryTensor:
    """Return `tensor` ``[heads·d, …]`` with each head's rows in halves instead of neighbours.

    Row ``h·d + 2i + c`` becomes row ``h·d + c·d/2 + i``.

    Raises:
        AdapterError: The rows are not those of that many heads of even width.
    """
    rows = tensor.shape[0]
    if rows == 0 or rows % (2 * heads):
        msg = (
            f"tensor {tensor.name!r} of adapter {source!r} has {rows} rows, "
            f"which are not those of {heads} heads"
        )
        raise AdapterError(msg, hint="The adapter belongs to another base.")
    values = read_all(tensor)
    paired = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return derived(tensor, paired.swapaxes(1, 2).reshape(values.shape))
