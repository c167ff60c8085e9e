"""The ``config.json`` of a merged checkpoint: the base's, with what the adapter changes in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.vocabulary import resized_config
from lora_export.core.errors import UsageError
from lora_export.weights.label_names import config_of_head, names_of_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.adapters.vocabulary import Vocabulary
    from lora_export.core.json_file import JsonObject

__all__ = ["merged_config", "with_task_head"]

_DTYPE_KEYS: Final = ("dtype", "torch_dtype")  # transformers 5, and before
_SUFFIXES: Final = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForCausalLM",
    "LMHeadModel",
    "DoubleHeadsModel",
    "ForMaskedLM",
    "ForPreTraining",
    "ForQuestionAnswering",
    "Model",
)
_HEADS: Final = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}


def merged_config(
    config: Mapping[str, Any],
    *,
    task_type: str | None,
    head_width: int | None,
    labels: Sequence[str] | None,
    dtype: str | None,
    own: Mapping[str, Any] | None = None,
    vocabulary: Vocabulary | None = None,
) -> JsonObject:
    """Return the config of the merged checkpoint.

    Args:
        config: The base's.
        task_type: PEFT's ``task_type`` of the adapter.
        head_width: The number of classes of the head that the adapter brings; None without one.
        labels: Names of those classes.
        dtype: What the checkpoint is cast to; None where it keeps its own.
        own: The ``config.json`` in the adapter's folder, for the names of its classes.
        vocabulary: How the adapter changes the number of tokens, if it does.

    Raises:
        UsageError: There are labels but no head, or not as many as it is wide.
        UnsupportedError: The config cannot say the new number of tokens.
    """
    table = dict(config) if vocabulary is None else resized_config(config, vocabulary)
    if labels is not None and head_width is None:
        raise UsageError("the adapter has no head with classes for labels",
                         hint="Leave --labels (labels) out.")  # fmt: skip
    if head_width is not None:
        _require_as_many(labels, head_width)
        own = own or {}
        names = names_of_head(head_width, given=labels, own=own, base=config, brought=True)
        table = config_of_head(table, names, own=own, brought=True)
        table = with_task_head(table, task_type)
    if dtype is not None:
        keys = [key for key in _DTYPE_KEYS if key in config] or [_DTYPE_KEYS[1]]
        table.update(dict.fromkeys(keys, dtype))
    return table


def with_task_head(config: Mapping[str, Any], task_type: str | None) -> JsonObject:
    """Return `config` with the class in ``architectures`` that has the head of a PEFT task."""
    table = dict(config)
    if task_type in _HEADS:
        table["architectures"] = _with_head(config, _HEADS[task_type])
    return table


def _require_as_many(labels: Sequence[str] | None, width: int) -> None:
    if labels is not None and len(labels) != width:
        msg = f"{len(labels)} labels are given, but the head has {width} outputs"
        raise UsageError(msg, hint="Give as many names as the head has outputs, in their order.")


def _with_head(config: Mapping[str, Any], suffix: str) -> Any:
    """Return ``architectures`` with the class that has the adapter's head."""
    held = config.get("architectures")
    if not isinstance(held, list) or not held:
        return held
    name = str(held[0])
    end = next((end for end in _SUFFIXES if name.endswith(end)), None)
    return [name.removesuffix(end) + suffix] if end else held
