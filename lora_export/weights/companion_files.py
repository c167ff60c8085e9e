"""The files beside weights: tokenizer, chat templates, generation and processor settings.

One table for bases and adapters. Code (``tokenization_*.py``) and weights are in none of its rows.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lora_export.core.errors import AdapterError, InputError, StorageError
from lora_export.core.files import storage_errors
from lora_export.core.safetensors_file import read_header
from lora_export.ondevice.file_opening import read_file, reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter

__all__ = [
    "CHAT_TEMPLATE",
    "CONFIG",
    "GENERATION_CONFIG",
    "LIMIT_BYTES",
    "SENTENCE",
    "SETTINGS",
    "TEMPLATES",
    "TOKENIZER",
    "VOCABULARIES",
    "Content",
    "adapter_folder",
    "companion_files",
    "read_content",
    "same_content",
]

_HINT: Final = "Check the file; what is not part of a tokenizer is moved out of the folder."
_WEIGHTS: Final = (".safetensors", ".bin")

Content: TypeAlias = "Path | bytes"
"""A companion: a file, or what one is to hold."""
CONFIG: Final = "config.json"
MODULES: Final = "modules.json"
GENERATION_CONFIG: Final = "generation_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
LIMIT_BYTES: Final = 1 << 28
"""How large a companion may become; the largest vocabularies have 40 MB."""

_MODULE_LIMIT_BYTES: Final = 1 << 30
"""The largest PyTorch file of a module: a dense layer of 4096 by 4096 in float32 has 67 MB."""

VOCABULARIES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "source.spm",
    "tiktoken.model",
    "qwen.tiktoken",
    "prophetnet.tokenizer",
    "byte_maps.json",
    "vocab-src.json",
)
"""Files of which one makes a tokenizer; the rows of `TOKENIZER` after them complete it."""

TOKENIZER: Final = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.bpe",
    "bpe.codes",
    "dict.txt",
    "target.spm",
    "vocab-tgt.json",
    "target_vocab.json",
    "normalizer.json",
    "emoji.json",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
)
TEMPLATES: Final = re.compile(r"chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja")
_TEMPLATE_FOLDER: Final = "additional_chat_templates"
SETTINGS: Final = (
    GENERATION_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Files that say something by themselves."""

SENTENCE: Final = re.compile(
    r"modules\.json|[0-9]+_[^/]+/(config\.json|model\.safetensors|pytorch_model\.bin)"
)
"""The chain of sentence-transformers, and the folders of its modules."""

_UNSAID: Final = frozenset(
    {
        "_commit_hash",
        "_from_model_config",
        "_name_or_path",
        "is_local",
        "local_files_only",
        "name_or_path",
        "transformers_version",
    }
)
"""Keys of settings that tell where and by what a file was written."""


def companion_files(folder: Path) -> dict[str, Path]:
    """Return the companions in `folder` by their names below it, ``config.json`` included.

    Args:
        folder: The folder of a checkpoint or an adapter; links in it are followed.

    Raises:
        StorageError: The folder cannot be read.
        InputError: A file is too large to be what its name says.
    """
    wanted = [*TOKENIZER, *SETTINGS, CONFIG, CHAT_TEMPLATE, "chat_template.json"]
    found = [folder / name for name in wanted]
    try:
        found += sorted((folder / _TEMPLATE_FOLDER).glob("*.jinja"))
        if (folder / MODULES).is_file():
            found += [folder / MODULES, *sorted(folder.glob("[0-9]*_*/*"))]
        named = {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}
    except OSError as error:
        msg = f"cannot read {str(folder)!r}: {error.strerror}"
        raise StorageError(msg, hint="Check the path and its permissions.") from error
    kept = {name: path for name, path in named.items() if name in wanted or _in_folder(name)}
    for path in kept.values():
        _require_small(path)
    return kept


def _require_small(path: Path) -> None:
    """Require of a companion that it is no larger than one can be.

    The weights of a sentence model's modules have as many bytes as their header says.
    """
    if path.suffix == ".safetensors":
        read_header(path)
        return
    limit_bytes, what = LIMIT_BYTES, "a tokenizer"
    if path.suffix in _WEIGHTS:
        limit_bytes, what = _MODULE_LIMIT_BYTES, "a module of a sentence model"
    with storage_errors(str(path)):
        size_bytes = path.stat().st_size
    if size_bytes > limit_bytes:
        msg = f"{str(path)!r} has {size_bytes} bytes; at most {limit_bytes} belong to {what}"
        raise InputError(msg, hint=_HINT)


def _in_folder(name: str) -> bool:
    return TEMPLATES.fullmatch(name) is not None or SENTENCE.fullmatch(name) is not None


def same_content(name: str, first: Content, second: Content) -> bool:
    """Return whether two companions say the same: equal bytes, or equal JSON.

    Keys may come in any order, and those that tell where a file was written do not count.

    Args:
        name: The name of the file.
        first: A file, or what one holds.
        second: The other.

    Raises:
        AdapterError: A file is too large, or cannot be read.
    """
    data = [read_content(each) for each in (first, second)]
    if data[0] == data[1]:
        return True
    if not name.endswith(".json"):
        return False
    try:
        values = [_canonical(json.loads(each)) for each in data]
    except (ValueError, RecursionError):
        return False
    return values[0] == values[1]


def read_content(content: Content) -> bytes:
    """Return the contents of a companion.

    Raises:
        AdapterError: The file is too large, or cannot be read.
    """
    if isinstance(content, bytes):
        return content
    path = content
    try:
        return read_file(path, LIMIT_BYTES)
    except OSError as error:
        msg = f"cannot read {str(path)!r}: {reason_of(error)}"
        raise AdapterError(msg, hint=_HINT) from error


def adapter_folder(adapter: Adapter) -> Path | None:
    """Return the folder whose companions are the adapter's; None for a file alone."""
    place = adapter.folder
    if place.is_dir():
        return place
    return place.parent if (place.parent / "adapter_config.json").is_file() else None


def _canonical(value: Any) -> str:
    """Return JSON as text, in which 1 and true differ."""
    said: Any = value
    if isinstance(value, dict):
        said = {key: each for key, each in value.items() if key not in _UNSAID}
    return json.dumps(said, sort_keys=True)
