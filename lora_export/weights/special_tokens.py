"""The ids of a tokenizer's special tokens, and configs that agree with them.

The rule is that of transformers' `Trainer` (`align_special_tokens`): a token that the tokenizer
defines is set in ``config.json`` and ``generation_config.json``; tokens that end a text are added
to those that end it already.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lora_export.core.checkpoint_tables import read_checkpoint_table
from lora_export.core.errors import AdapterError
from lora_export.weights.companion_files import LIMIT_BYTES, read_content

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.core.errors import InputError
    from lora_export.core.json_file import JsonObject
    from lora_export.weights.companion_files import Content

__all__ = ["Ids", "ids_of", "read_table", "special_ids", "with_special_tokens"]

Ids: TypeAlias = "Mapping[str, int | list[int]]"
"""``eos_token_id``, ``bos_token_id``, ``pad_token_id``."""

_TOKENS: Final = ("eos_token", "bos_token", "pad_token")
_DIGITS_LIMIT: Final = 20
_SEVERAL: Final = "eos_token_id"
_TEXT_CONFIG: Final = "text_config"
_PADDING: Final = "pad_token_id"
_FIXED_PADDING: Final = frozenset({
    "altclip", "bridgetower_text_model", "camembert", "clap_text_model", "data2vec-text", "esm",
    "fsmt", "ibert", "kosmos-2", "kosmos-2.5", "layoutlmv3", "lilt", "longformer", "luke",
    "m2m_100", "marian", "markuplm", "mpnet", "musicgen", "musicgen_melody", "nllb-moe", "pegasus",
    "pegasus_x", "prophetnet", "roberta", "roberta-prelayernorm", "roformer", "seamless_m4t",
    "seamless_m4t_v2",
    "speech_to_text", "speecht5", "trocr", "xglm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Models of transformers that number positions from the padding token: another one moves them."""


def special_ids(files: Mapping[str, Content]) -> dict[str, int]:
    """Return the ids of the tokens that end, begin and pad a text, as far as the files tell.

    Args:
        files: The files of a tokenizer, by name.

    Raises:
        AdapterError: A file is not JSON.
    """
    settings = {
        **read_table(files, "special_tokens_map.json"),
        **read_table(files, "tokenizer_config.json"),
    }
    names = {token: _text(settings.get(token)) for token in _TOKENS}
    wanted = {name for name in names.values() if name is not None}
    if not wanted:
        return {}
    ids: dict[str, int] = {}
    for name, token in _numbered(files, settings):
        if name in wanted:
            ids.setdefault(name, token)
    return {
        f"{token}_id": ids[name]
        for token, name in names.items()
        if name is not None and name in ids
    }


def ids_of(value: Any) -> int | list[int] | None:
    """Return the token ids that a config says; None where it says something else."""
    given = value if isinstance(value, list) else [value]
    if not given or not all(
        isinstance(e, int) and not isinstance(e, bool) and e >= 0 for e in given
    ):
        return None
    return list(given) if isinstance(value, list) else given[0]


def _text(token: Any) -> str | None:
    """Return the text of a token, which settings hold plain or as a table."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _numbered(
    files: Mapping[str, Content], settings: Mapping[str, Any]
) -> Iterator[tuple[str, int]]:
    """Yield tokens with their ids, those that were added first."""
    whole = read_table(files, "tokenizer.json")
    for token in _list(whole.get("added_tokens")):
        if isinstance(token, dict):
            yield from _pair(token.get("content"), token.get("id"))
    decoder: dict[str, Any] | None = settings.get("added_tokens_decoder")
    for digits, token in (decoder or {}).items():
        known = digits.isdecimal() and len(digits) < _DIGITS_LIMIT
        yield from _pair(_text(token), int(digits) if known else None)
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    for table in (read_table(files, "added_tokens.json"), vocabulary,
                  read_table(files, "vocab.json")):  # fmt: skip
        if isinstance(table, dict):
            for name, number in table.items():
                yield from _pair(name, number)
    for number, piece in enumerate(_list(vocabulary)):  # a unigram model's: [piece, score]
        yield from _pair(piece[0] if isinstance(piece, list) and piece else piece, number)
    if "vocab.txt" in files and not whole:
        data = read_content(files["vocab.txt"])
        for number, line in enumerate(data.decode("utf-8", "replace").split("\n")):
            yield from _pair(line.rstrip("\r"), number)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _pair(name: Any, number: Any) -> Iterator[tuple[str, int]]:
    if isinstance(name, str) and isinstance(number, int) and not isinstance(number, bool):
        yield name, number


def read_table(
    files: Mapping[str, Content], name: str, error: type[InputError] = AdapterError
) -> JsonObject:
    """Return the JSON object in one of `files`; an empty one where there is none.

    Raises:
        InputError: As `error`: the file is too large, no JSON object, or has settings of another
            type than is read.
    """
    source = files.get(name)
    if source is None:
        return {}
    if isinstance(source, bytes):  # made by this package
        table: JsonObject = json.loads(source)
        return table
    hint = "Save the tokenizer or the model's settings again."
    return read_checkpoint_table(source, LIMIT_BYTES, error, absent=hint, damaged=hint, kind=name)


def with_special_tokens(
    settings: Mapping[str, Any], ids: Ids, *, generation: bool = False
) -> JsonObject:
    """Return a config or generation config that agrees with `ids`.

    A config of several parts has them in its ``text_config``. An id beyond the vocabulary is left
    out: the model has no row for it; and so is another padding token than that of a model which
    numbers positions from it (RoBERTa).

    Args:
        settings: The config or generation config.
        ids: The new ids.
        generation: Whether it is a generation config, which may end a text in several ways.
    """
    text = settings.get(_TEXT_CONFIG)
    if isinstance(text, dict):
        outer = {key: value for key, value in ids.items() if key in settings}
        inner = with_special_tokens(text, ids)
        return {**_aligned(settings, outer, several=generation), _TEXT_CONFIG: inner}
    return _aligned(settings, ids, several=generation)


def _aligned(settings: Mapping[str, Any], ids: Ids, *, several: bool) -> JsonObject:
    table = dict(settings)
    rows = settings.get("vocab_size")
    for key, value in ids.items():
        new = value if isinstance(value, list) else [value]
        if isinstance(rows, int) and any(each >= rows for each in new):
            continue
        held = settings.get(key)
        if key == _PADDING and held is not None and settings.get("model_type") in _FIXED_PADDING:
            continue
        old = held if isinstance(held, list) else [] if held is None else [held]
        if new == old or (len(new) == 1 and new[0] in old):
            continue
        if key == _SEVERAL and (several or isinstance(held, list)):
            table[key] = [*new, *(each for each in old if each not in new)]
        else:
            table[key] = value
    return table
