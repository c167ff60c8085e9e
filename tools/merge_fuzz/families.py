"""The architectures that are drawn: every family of `tools.model_families`, under every head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import transformers
from transformers.models.auto import modeling_auto

from tools.merge_fuzz.merge_only_families import FURTHER
from tools.model_families import FAMILIES, Family

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HEADS", "Head", "by_name", "families", "heads_of"]

_LAYERS: Final = dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2)
_DEEPER: Final[dict[str, dict[str, Any]]] = {
    "GPT-Neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "DeepSeek-V3": {"num_hidden_layers": 3},
    "ModernBERT": {"num_hidden_layers": 4},
}


@dataclass(frozen=True)
class Head:
    """A kind of model class.

    Attributes:
        auto_class: The class in ``transformers`` that loads it.
        mapping: The part of the name of transformers' table of such classes.
        task_type: What PEFT calls the task; None where it has no word.
        labels: How many labels its config gets.
    """

    auto_class: str
    mapping: str
    task_type: str | None
    labels: int = 3


HEADS: Final = (
    Head("AutoModel", "", "FEATURE_EXTRACTION"),
    Head("AutoModelForCausalLM", "FOR_CAUSAL_LM_", "CAUSAL_LM"),
    Head("AutoModelForMaskedLM", "FOR_MASKED_LM_", None),
    Head("AutoModelForPreTraining", "FOR_PRETRAINING_", None),
    Head("AutoModelForSequenceClassification", "FOR_SEQUENCE_CLASSIFICATION_", "SEQ_CLS"),
    Head("AutoModelForTokenClassification", "FOR_TOKEN_CLASSIFICATION_", "TOKEN_CLS"),
    Head("AutoModelForQuestionAnswering", "FOR_QUESTION_ANSWERING_", "QUESTION_ANS", 2),
    Head("AutoModelForSeq2SeqLM", "FOR_SEQ_TO_SEQ_CAUSAL_LM_", "SEQ_2_SEQ_LM"),
    Head("AutoModelForSpeechSeq2Seq", "FOR_SPEECH_SEQ_2_SEQ_", None),
    Head("AutoModelForImageClassification", "FOR_IMAGE_CLASSIFICATION_", None),
    Head("AutoModelForImageTextToText", "FOR_IMAGE_TEXT_TO_TEXT_", None),
)


@cache
def families() -> tuple[Family, ...]:
    """Return the families, with two layers where their configs count them."""
    return tuple(
        Family(each.name, each.config, _shrunk(each), each.tasks) for each in (*FAMILIES, *FURTHER)
    )


def by_name(name: str) -> Family:
    """Return the family called `name`."""
    return next(each for each in families() if each.name == name)


@cache
def heads_of(config: str) -> tuple[Head, ...]:
    """Return the heads that transformers has for a config class."""
    model_type = getattr(transformers, config).model_type
    return tuple(head for head in HEADS if model_type in _table(head))


def _table(head: Head) -> Mapping[str, Any]:
    table: Mapping[str, Any] = getattr(modeling_auto, f"MODEL_{head.mapping}MAPPING_NAMES")
    return table


def _shrunk(family: Family) -> dict[str, Any]:
    layers = {name: value for name, value in _LAYERS.items() if name in family.settings}
    return {**family.settings, **layers, **_DEEPER.get(family.name, {})}
