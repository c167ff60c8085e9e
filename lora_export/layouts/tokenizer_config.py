"""``tokenizer_config.json`` as transformers 4 and readers of its time take it.

What transformers 5 writes in another way than version 4, and what version 4 refuses:

1. names of classes that are new: version 4 has one for any ``tokenizer.json``;
2. the further special tokens as a list ``extra_special_tokens``, once ``additional_…``;
3. named ones as ``model_specific_special_tokens``: once a table ``extra_special_tokens``;
4. the chat template in a file of its own, which not every reader looks for;
5. defaults that differ: version 4 makes ``token_type_ids`` too, which decoders refuse, and
   transformers.js removes spaces before punctuation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.layouts.model_types import knows_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.json_file import JsonObject

__all__ = ["made_tokenizer_config", "older_tokenizer_config"]

_CLASS: Final = "tokenizer_class"
_ANY: Final = "PreTrainedTokenizerFast"
_EXTRA: Final = "extra_special_tokens"
_NAMED: Final = "model_specific_special_tokens"
_ADDITIONAL: Final = "additional_special_tokens"
_TEMPLATE: Final = "chat_template"


def older_tokenizer_config(
    table: Mapping[str, Any], *, has_json: bool, template: str | None
) -> JsonObject:
    """Return a ``tokenizer_config.json`` that transformers 4 reads; another version's is kept.

    Args:
        table: The file as it is.
        has_json: Whether there is a ``tokenizer.json``.
        template: The chat template in a file of its own; None without one.
    """
    changed: JsonObject = {**table}
    name = table.get(_CLASS)
    if isinstance(name, str) and not knows_tokenizer(name):  # case 1
        if has_json:
            changed[_CLASS] = _ANY
            changed.setdefault("model_input_names", ["input_ids", "attention_mask"])  # case 5
        else:
            del changed[_CLASS]  # the model's type then tells
    if isinstance(table.get(_EXTRA), list):  # case 2
        changed[_ADDITIONAL] = [*(table.get(_ADDITIONAL) or []), *changed.pop(_EXTRA)]
    if isinstance(table.get(_NAMED), dict):  # case 3
        changed[_EXTRA] = changed.pop(_NAMED)
    if template is not None and not table.get(_TEMPLATE):  # case 4
        changed[_TEMPLATE] = template
    changed.setdefault("clean_up_tokenization_spaces", False)  # case 5
    return changed


def made_tokenizer_config(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> JsonObject:
    """Return a ``tokenizer_config.json`` for a ``tokenizer.json`` that has none beside it.

    Args:
        tokenizer: ``tokenizer.json``; its added tokens are looked at.
        config: The model's ``config.json``, which says which tokens begin, end and pad a text.
    """
    rows = tokenizer.get("added_tokens")
    added = {
        row["id"]: row["content"]
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get("content"), str) and "id" in row
    }
    found: JsonObject = {_CLASS: _ANY, "model_input_names": ["input_ids", "attention_mask"]}
    for name in ("bos_token", "eos_token", "pad_token"):
        number = config.get(f"{name}_id")
        first = number[0] if isinstance(number, list) and number else number
        if isinstance(first, int) and first in added:
            found[name] = added[first]
    return found
