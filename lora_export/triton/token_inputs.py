"""The tokenizer step of an ensemble: the token inputs of a graph, and their padding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.checkpoint_tables import read_checkpoint_table
from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.core.files import sha256_of_file
from lora_export.exports.adapter_companions import companions_of
from lora_export.triton.model_config import tokenizer_config
from lora_export.triton.model_folders import File
from lora_export.triton.python_models import serving_source
from lora_export.verification.inputs.random_inputs import longest_text
from lora_export.weights.companion_files import companion_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.json_file import JsonObject
    from lora_export.core.manifest import Manifest
    from lora_export.triton.graph_io import Tensor
    from lora_export.triton.repository_options import RepositoryOptions

__all__ = ["ADAPTERS", "Text", "own_texts", "text_of", "tokenizer_model"]

_TOKENS: Final = ("input_ids", "attention_mask", "token_type_ids")
_TOKENIZER: Final = "tokenizer.json"
ADAPTERS: Final = "adapters"
"""The parameter with what tells the texts of adapters from the base's."""
_MASK: Final = "attention_mask"
_MULTIPLE: Final = 8
_ANY: Final = -1
_LIMIT_BYTES: Final = 1 << 28
_NO_LIMIT: Final = 1 << 20
"""A ``model_max_length`` beyond this says that there is none."""


@dataclass(frozen=True)
class Text:
    """The tokenizer of a base or an adapter, and its settings.

    Attributes:
        path: Its ``tokenizer.json``.
        sha256: The hash of that file.
        settings: How texts are padded and cut, as parameters of the model.
    """

    path: Path
    sha256: str
    settings: Mapping[str, str]

    def same(self, other: Text | None) -> bool:
        """Return whether `other` makes the same tokens."""
        return other is not None and (self.sha256, self.settings) == (other.sha256, other.settings)

    def line(self, adapter: str) -> dict[str, str]:
        """Return the entry of an adapter in the model's parameter ``adapters``."""
        return {**self.settings, "file": f"tokenizer-{adapter}.json", "sha256": self.sha256}


def text_of(files: Mapping[str, Path]) -> Text | None:
    """Return how texts become tokens; None where there is no ``tokenizer.json``.

    Args:
        files: The companions of a base or an adapter, by name.

    Raises:
        ExportDirectoryError: A file is damaged.
    """
    path = files.get(_TOKENIZER)
    return None if path is None else Text(path, sha256_of_file(path), _padding(files))


def own_texts(export_dir: Path, manifest: Manifest, adapters: Sequence[str]) -> dict[str, Text]:
    """Return the texts of those adapters whose tokens are not the base's.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        adapters: The adapters; other names are left out.

    Raises:
        ExportDirectoryError: A file is damaged.
    """
    base = text_of(companions_of(export_dir, manifest))
    found = {
        each: text_of(companions_of(export_dir, manifest, each))
        for each in adapters
        if each in manifest.adapters and manifest.adapters[each].companions is not None
    }
    return {name: text for name, text in found.items() if text is not None and not text.same(base)}


def tokenizer_model(
    export_dir: Path,
    name: str,
    inputs: Sequence[Tensor],
    settings: RepositoryOptions,
    parameters: Mapping[str, str],
    *,
    text: Text | None = None,
    adapters: Mapping[str, Text] | None = None,
) -> tuple[Any, list[File]]:
    """Return the configuration and the files of the model that makes a graph's inputs of texts.

    Args:
        export_dir: The export directory.
        name: The model's name.
        inputs: What the graph reads.
        settings: The user's settings.
        parameters: Further parameters.
        text: How texts become tokens; by default as the base's do.
        adapters: Adapters whose texts become others: the model then reads ``adapter`` too.

    Raises:
        UnsupportedError: The graph reads something else, or there is no ``tokenizer.json``.
        ExportDirectoryError: The tokenizer's file is damaged.
    """
    strange = [each.name for each in inputs if each.name not in _TOKENS]
    if strange:
        msg = f"the graph reads {strange[0]!r}, which a tokenizer does not make of a text"
        raise UnsupportedError(msg, hint="Serve it without --text.")
    if _MASK not in [each.name for each in inputs]:
        msg = f"the graph reads no {_MASK!r}: it would read the padding of a short text too"
        raise UnsupportedError(msg, hint="Serve it without --text.")
    text = text or text_of(companion_files(export_dir / "hf"))
    if text is None:
        msg = f"the export {str(export_dir)!r} has no hf/{_TOKENIZER}"
        raise UnsupportedError(
            msg, hint="Serve it without --text, or put the file into the base checkpoint."
        )
    own = {**parameters, **text.settings, "multiple": str(_MULTIPLE)}
    lines = {each: held.line(each) for each, held in sorted((adapters or {}).items())}
    if sizes := {each.dims[-1] for each in inputs if each.dims[-1] != _ANY}:
        length = str(min(sizes))  # a graph of one length
        own |= {"multiple": length, "max_length": length}
        lines = {each: {**line, "max_length": length} for each, line in lines.items()}
    if lines:
        own[ADAPTERS] = json.dumps(lines, sort_keys=True)
    config = tokenizer_config(name, inputs, settings, own, by_adapter=bool(lines))
    code = [serving_source("tokenizer.py", "1/model.py"), serving_source("probe.py", "1/probe.py")]
    files = [File(f"1/{lines[each]['file']}", (adapters or {})[each].path) for each in lines]
    return config, [*code, File(f"1/{_TOKENIZER}", text.path), *files]


def _padding(files: Mapping[str, Path]) -> dict[str, str]:
    """Return how texts are padded and cut, of the tokenizer's files and the config.

    The padding token is the config's, with which the graph computes. Where sentence-transformers
    says how long a text may be, its word counts, as it does there: what the tokenizer was last set
    to is often shorter.
    """
    table = _json(files, _TOKENIZER)
    padding, truncation = table.get("padding") or {}, table.get("truncation") or {}
    config = _json(files, "config.json")
    limits: list[Any] = [longest_text(config)]
    sentence = _json(files, "sentence_bert_config.json").get("max_seq_length")
    if isinstance(sentence, int) and sentence > 0:
        limits += [sentence]
    else:
        limits += [
            truncation.get("max_length"),
            _json(files, "tokenizer_config.json").get("model_max_length"),
        ]
    pad = config.get("pad_token_id")
    return {
        "pad_id": str(int(padding.get("pad_id", 0) if pad is None else pad)),
        "pad_type_id": str(int(padding.get("pad_type_id", 0))),
        "max_length": str(
            min((int(each) for each in limits if each and each < _NO_LIMIT), default=_NO_LIMIT)
        ),
    }


def _json(files: Mapping[str, Path], name: str) -> JsonObject:
    """Return a JSON file; nothing where there is none."""
    path = files.get(name)
    again = "Export again."
    if path is None:
        return {}
    return read_checkpoint_table(
        path, _LIMIT_BYTES, ExportDirectoryError, absent=again, damaged=again
    )
