"""The templates of decoders: each family's choices, dtypes and opsets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tools.templates.make import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["decoder_subjects"]

_Choices = tuple[tuple[str, Any], ...]

_TIED: Final = ("tie_word_embeddings", True)
_UNTIED: Final = ("tie_word_embeddings", False)
_EACH_OWN: Final = ("grouped", False)
_GROUPED: Final = ("grouped", True)
_ONE: Final = ("grouped", "one")
_DECODERS: Final[dict[str, tuple[_Choices, ...]]] = {
    "gpt2": ((),),
    "llama": (
        (_UNTIED, _GROUPED),
        (_TIED, _GROUPED),
        (_UNTIED, _EACH_OWN),
        (_TIED, _EACH_OWN),
    ),
    "qwen2": ((_UNTIED, _GROUPED), (_TIED, _GROUPED)),
    "qwen3": ((_UNTIED, _GROUPED), (_TIED, _GROUPED)),
    "mistral": ((_GROUPED, ("windowed", False)), (_GROUPED, ("windowed", True))),
    "gemma": ((_ONE,), (_EACH_OWN,)),
    "phi3": tuple(
        (grouped, ("windowed", windowed))
        for windowed in (True, False)
        for grouped in (_EACH_OWN, _GROUPED)
    ),
}
_OPSETS: Final = (20, 23)
"""One of each kind: others have the same graphs (`tools.templates.derivations`)."""


def decoder_subjects() -> Iterator[Subject]:
    """Yield the subjects of the decoders' templates."""
    for opset in _OPSETS:
        for dtype in ("float32", "float16"):
            for model_type, variants in _DECODERS.items():
                yield from (
                    Subject(model_type, "text-generation", dtype, opset, choices)
                    for choices in variants
                )
