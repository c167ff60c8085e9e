"""The templates of decoders: each family's choices, dtypes and opsets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tools.templates.make import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["decoder_subjects"]

_OPSET: Final = 20

_Choices = tuple[tuple[str, Any], ...]
_DECODERS: Final[dict[str, tuple[_Choices, ...]]] = {
    "gpt2": ((),),
    "llama": tuple(
        (("tie_word_embeddings", tied), ("grouped", grouped))
        for grouped in (True, False)
        for tied in (False, True)
    ),
    "qwen2": tuple((("tie_word_embeddings", tied), ("grouped", True)) for tied in (False, True)),
    "qwen3": tuple((("tie_word_embeddings", tied), ("grouped", True)) for tied in (False, True)),
    "mistral": ((("grouped", True),),),
}


def decoder_subjects() -> Iterator[Subject]:
    """Yield the subjects of the decoders' templates."""
    for dtype in ("float32", "float16"):
        for model_type, variants in _DECODERS.items():
            yield from (
                Subject(model_type, "text-generation", dtype, _OPSET, choices)
                for choices in variants
            )
