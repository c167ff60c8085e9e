"""The templates that are made: each family's tasks, dtypes and choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.weights.sentence_head import SentenceHead
from tools.templates.make import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["subjects"]

_OPSET: Final = 20
_ENCODER_TASKS: Final = (
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "feature-extraction",
)
_HEADS: Final = (
    SentenceHead(("mean",), normalize=True),
    SentenceHead(("mean",)),
    SentenceHead(("cls",), normalize=True),
)

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


def subjects() -> Iterator[Subject]:
    """Yield every template's subject, those that most people need first."""
    yield from sorted(_all(), key=_urgency)


def _urgency(subject: Subject) -> int:
    first = (
        ("roberta", "text-classification", "float32"),
        ("gpt2", "text-generation", "float32"),
        ("bert", "text-classification", "float32"),
        ("bert", "sentence-similarity", "float32"),
        ("llama", "text-generation", "float16"),
        ("bert", "feature-extraction", "float32"),
        ("distilbert", "text-classification", "float32"),
    )
    key = (subject.model_type, subject.task, subject.dtype)
    if key in first:
        return first.index(key)
    usual = "float16" if subject.task == "text-generation" else "float32"
    return len(first) + (subject.dtype != usual)


def _all() -> Iterator[Subject]:
    for dtype in ("float32", "float16"):
        yield from (Subject("roberta", task, dtype, _OPSET) for task in _ENCODER_TASKS)
        yield from (Subject("bert", task, dtype, _OPSET) for task in _ENCODER_TASKS)
        yield from (
            Subject("bert", "sentence-similarity", dtype, _OPSET, sentence=head) for head in _HEADS
        )
        for model_type, variants in _DECODERS.items():
            yield from (
                Subject(model_type, "text-generation", dtype, _OPSET, choices)
                for choices in variants
            )
        yield from (Subject("distilbert", task, dtype, _OPSET) for task in _ENCODER_TASKS)
        yield from (Subject("xlm-roberta", task, dtype, _OPSET) for task in _ENCODER_TASKS)
