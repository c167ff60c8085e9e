"""The templates that are made: each family's tasks, dtypes and choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.weights.sentence_head import SentenceHead
from tools.templates.decoder_subjects import decoder_subjects
from tools.templates.make import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["sentence_of", "subjects"]

_OPSET: Final = 20
_ENCODER_TASKS: Final = (
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "feature-extraction",
)
_VISION_TASKS: Final = ("image-classification", "image-feature-extraction")
_HEADS: Final = (
    SentenceHead(("mean",), normalize=True),
    SentenceHead(("mean",)),
    SentenceHead(("cls",), normalize=True),
)


def subjects() -> Iterator[Subject]:
    """Yield every template's subject, those that most people need first."""
    yield from sorted(_all(), key=_urgency)


def sentence_of(described: str | None) -> SentenceHead | None:
    """Return the pooling that a row of the index describes."""
    return next((each for each in _HEADS if str(each) == described), None)


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
    yield from decoder_subjects()
    for dtype in ("float32", "float16"):
        yield from (Subject("roberta", task, dtype, _OPSET) for task in _ENCODER_TASKS)
        yield from (Subject("bert", task, dtype, _OPSET) for task in _ENCODER_TASKS)
        yield from (
            Subject("bert", "sentence-similarity", dtype, _OPSET, sentence=head) for head in _HEADS
        )
        yield from (Subject("distilbert", task, dtype, _OPSET) for task in _ENCODER_TASKS)
        yield from (Subject("xlm-roberta", task, dtype, _OPSET) for task in _ENCODER_TASKS)
        yield from (Subject("vit", task, dtype, _OPSET) for task in _VISION_TASKS)
        yield from (Subject("deberta-v2", task, dtype, _OPSET) for task in _ENCODER_TASKS)
