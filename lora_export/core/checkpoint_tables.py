"""The JSON files of a checkpoint: the settings in them that are read, with their types.

A setting may be absent or null. The types are those of the library that writes the file
(transformers' config classes, tokenizers, sentence-transformers); settings that only the library
itself reads are left to it. A ``config.json`` may have sections for the models inside the model,
which have the same settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, Field

from lora_export.core.checked_table import (
    Count,
    Integers,
    Names,
    Table,
    Text,
    check_table,
)
from lora_export.core.files import is_file_name
from lora_export.core.json_file import read_table
from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lora_export.core.errors import InputError
    from lora_export.core.json_file import JsonObject

__all__ = ["DENSE", "INDEX", "POOLING", "check_checkpoint_table", "read_checkpoint_table"]

POOLING: Final = "1_Pooling/config.json"
DENSE: Final = "2_Dense/config.json"
INDEX: Final = "model.safetensors.index.json"

_SECTIONS: Final = (
    "text_config",
    "decoder_config",
    "llm_config",
    "vlm_config",
    "thinker_config",
    "encoder",
    "decoder",
)
_DEPTH_LIMIT: Final = 8
_NAME_LIMIT_BYTES: Final = 255
_LENGTH_LIMIT: Final = 1 << 26
_DIGITS_LIMIT: Final = 9
_ROPE_LENGTH: Final = "original_max_position_embeddings"

_Identifier = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
_Identifiers = _Identifier | Integers
_Length = Annotated[int, Field(ge=-1, le=_LENGTH_LIMIT)]

_FLAG: Final = "true or false"
_SIZE: Final = "a size: an integer of at least 0"
_POSITIONS: Final = f"a number of positions: an integer up to {_LENGTH_LIMIT}"
_ID: Final = "the number of a token"
_IDS: Final = "the number of a token, or a list of such numbers"
_ROPE: Final = "a table of rotary settings: types as texts, lengths as integers"


def _is_rope(table: dict[str, Any]) -> dict[str, Any]:
    """Require the types of rotary settings, or of those of each type of layer."""
    for each in (table, *(row for row in table.values() if isinstance(row, dict))):
        length = each.get(_ROPE_LENGTH)
        kinds = (each.get("rope_type"), each.get("type"))
        if length is not None and (type(length) is not int or not -1 <= length <= _LENGTH_LIMIT):
            msg = "a length is not an integer"
            raise ValueError(msg)
        if not all(kind is None or isinstance(kind, str) for kind in kinds):
            msg = "a type is not text"
            raise ValueError(msg)
    return table


def _is_weight_map(table: dict[str, Any]) -> dict[str, str]:
    """Require that tensors are in files beside the index."""
    if not table:
        msg = "it names no tensor"
        raise ValueError(msg)
    known: set[str] = set()
    for name in table.values():
        if isinstance(name, str) and name in known:
            continue
        if not isinstance(name, str) or not _is_name(name):
            msg = f"{shown(name)} is not a plain file name"
            raise ValueError(msg)
        known.add(name)
    return table


def _is_name(name: str) -> bool:
    return is_file_name(name) and "\0" not in name and len(name.encode()) <= _NAME_LIMIT_BYTES


def _is_numbered(table: dict[str, Any]) -> dict[str, Any]:
    """Require that the keys are the numbers of classes, as transformers reads them."""
    for key in table:
        if not (key.isascii() and key.isdecimal() and len(key) <= _DIGITS_LIMIT):
            msg = f"{shown(key)} is not the number of a class"
            raise ValueError(msg)
    return table


_Rope = Annotated[dict[str, Any], AfterValidator(_is_rope)]
_Labels = Annotated[dict[str, Any], AfterValidator(_is_numbered)]


class _Config(Table):
    model_type: Text | None = Field(None, description="a text such as llama")
    architectures: Names | None = Field(
        None, max_length=1000, description="a list of names of classes"
    )
    tie_word_embeddings: bool | None = Field(None, description=_FLAG)
    vocab_size: Count | None = Field(None, description=_SIZE)
    decoder_vocab_size: Count | None = Field(None, description=_SIZE)
    type_vocab_size: Count | None = Field(None, description=_SIZE)
    hidden_size: Count | None = Field(None, description=_SIZE)
    num_hidden_layers: Count | None = Field(None, description=_SIZE)
    num_kv_shared_layers: Count | None = Field(None, description=_SIZE)
    num_labels: Count | None = Field(None, description=_SIZE)
    max_position_embeddings: _Length | None = Field(None, description=_POSITIONS)
    original_max_position_embeddings: _Length | None = Field(None, description=_POSITIONS)
    n_positions: _Length | None = Field(None, description=_POSITIONS)
    n_ctx: _Length | None = Field(None, description=_POSITIONS)
    max_target_positions: _Length | None = Field(None, description=_POSITIONS)
    rope_parameters: _Rope | None = Field(None, description=_ROPE)
    rope_scaling: _Rope | None = Field(None, description=_ROPE)
    pad_token_id: _Identifier | None = Field(None, description=_ID)
    bos_token_id: _Identifiers | None = Field(None, description=_IDS)
    decoder_start_token_id: _Identifiers | None = Field(None, description=_IDS)
    eos_token_id: _Identifiers | None = Field(None, description=_IDS)
    forced_bos_token_id: _Identifiers | None = Field(None, description=_IDS)
    id2label: _Labels | None = Field(None, description="a table of names by number")
    text_config: dict[str, Any] | None = Field(None, description="a table")


class _Padding(Table):
    pad_id: Count | None = Field(None, description=_ID)
    pad_type_id: Count | None = Field(None, description="the number of a kind of token")


class _Truncation(Table):
    max_length: Count | None = Field(None, description=_SIZE)


class _Tokenizer(Table):
    padding: _Padding | None = Field(None, description="a table")
    truncation: _Truncation | None = Field(None, description="a table")
    added_tokens: list[Any] | None = Field(None, description="a list of tokens")
    model: dict[str, Any] | None = Field(None, description="a table")


class _TokenizerConfig(Table):
    model_max_length: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="a number"
    )
    chat_template: Text | list[Any] | dict[str, Any] | None = Field(
        None, description="a template, or a list of templates"
    )
    added_tokens_decoder: dict[str, Any] | None = Field(None, description="a table of tokens")


class _SentenceBert(Table):
    max_seq_length: Count | None = Field(None, description=_SIZE)


class _Pooling(Table):
    include_prompt: bool | None = Field(None, description=_FLAG)
    pooling_mode: Text | Names | None = Field(None, description="a mode, or a list of modes")


class _Dense(Table):
    in_features: Count | None = Field(None, description=_SIZE)
    out_features: Count | None = Field(None, description=_SIZE)
    bias: bool | None = Field(None, description=_FLAG)
    activation_function: Text | None = Field(None, description="the name of a class")
    module_input_name: Text | None = Field(None, description="a name")
    module_output_name: Text | None = Field(None, description="a name")


class _Index(Table):
    weight_map: Annotated[dict[str, Any], AfterValidator(_is_weight_map)] = Field(
        description="a table of the file beside the index that holds each tensor"
    )


_MODELS: Final[dict[str, type[Table]]] = {
    "config.json": _Config,
    "generation_config.json": _Config,
    "tokenizer.json": _Tokenizer,
    "tokenizer_config.json": _TokenizerConfig,
    "sentence_bert_config.json": _SentenceBert,
    POOLING: _Pooling,
    DENSE: _Dense,
    INDEX: _Index,
}
"""By the name of the file below the checkpoint's folder; of other files nothing is required."""


def read_checkpoint_table(
    path: Path,
    limit_bytes: int,
    error: type[InputError],
    *,
    absent: str,
    damaged: str,
    kind: str | None = None,
) -> JsonObject:
    """Return the JSON object in a file of a checkpoint, the types of what is read checked.

    Args:
        path: The file.
        limit_bytes: How large it may be.
        error: What is raised.
        absent: The hint where it cannot be read.
        damaged: The hint where it holds something else.
        kind: The kind of file, as its usual name; that of `path` by default.

    Raises:
        InputError: As `error`: see `lora_export.core.json_file.read_table`; or a setting has
            another type.
    """
    table = read_table(path, limit_bytes, error, absent=absent, damaged=damaged)
    check_checkpoint_table(table, kind or path.name, error, where=repr(str(path)), hint=damaged)
    return table


def check_checkpoint_table(
    table: Mapping[str, Any], kind: str, error: type[InputError], *, where: str, hint: str
) -> None:
    """Require that the settings of a checkpoint's file have the types that are read.

    Args:
        table: The settings.
        kind: The kind of file, as its usual name.
        error: What is raised.
        where: The file, for the message.
        hint: What to do about it.

    Raises:
        InputError: As `error`: one has another type; it is named, with its value.
    """
    model = _MODELS.get(kind)
    if model is None:
        return
    check_table(table, model, error, where=where, hint=hint)
    if model is _Config:
        for path, section in _sections(table, ""):
            check_table(section, model, error, where=f"{path} in {where}", hint=hint)


def _sections(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the sections of the models inside a model, at any depth, with their paths."""
    for name in _SECTIONS:
        section = table.get(name)
        if isinstance(section, dict) and path.count(".") < _DEPTH_LIMIT:
            own = f"{path}.{name}".lstrip(".")
            yield own, section
            yield from _sections(section, own)
