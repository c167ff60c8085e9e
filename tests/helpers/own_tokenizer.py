"""Tokenizers as users save them through transformers: a base's, and an adapter's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["CHAT", "TEXT", "loaded", "save_base_tokenizer", "save_own_tokenizer", "table"]

CHAT: Final = "{% for m in messages %}<|im_start|> {{ m['content'] }} <|im_end|>{% endfor %}"
TEXT: Final = "<|im_start|> w5 w6 <|im_end|>"


def save_base_tokenizer(folder: Path, words: int = 190, **settings: Any) -> Path:
    """Save the tokenizer of a base: ``<unk>`` 0, ``<s>`` 1, ``</s>`` 2, ``w3`` up to `words`."""
    import tokenizers
    import transformers

    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary = {**special, **{f"w{index}": index for index in range(3, words)}}
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole,
        **{"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<unk>", **settings},
    ).save_pretrained(folder)
    return folder


def save_own_tokenizer(
    base: Path,
    folder: Path,
    *,
    added: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    eos: str = "<|im_end|>",
    template: str | None = CHAT,
) -> Any:
    """Save the base's tokenizer with further special tokens, as training for chat does."""
    own = loaded(base)
    own.add_special_tokens({"additional_special_tokens": list(added)})
    own.eos_token = eos
    own.chat_template = template
    own.save_pretrained(folder)
    return own


def loaded(folder: Path) -> Any:
    """Return the tokenizer in a folder, as transformers loads it."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def table(path: Path, **changes: Any) -> dict[str, Any]:
    """Return the JSON object in `path`, written again where there are `changes`."""
    held: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if changes:
        path.write_text(json.dumps({**held, **changes}))
    return {**held, **changes}
