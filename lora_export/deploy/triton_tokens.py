"""The tokenizer step of an ensemble: which tokens a graph reads, and how they are padded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.base.errors import ExportDirectoryError, UnsupportedError
from lora_export.base.files import resolve_inside
from lora_export.base.json_file import read_table
from lora_export.deploy.triton_config import tokenizer_config
from lora_export.deploy.triton_files import File
from lora_export.deploy.triton_serving import serving_source
from lora_export.verify.inputs import longest_text
from lora_export.weights.checkpoint import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.deploy.triton_graph import Tensor
    from lora_export.deploy.triton_settings import Settings

__all__ = ["tokenizer_model"]

_TOKENS: Final = ("input_ids", "attention_mask", "token_type_ids")
_TOKENIZER: Final = "hf/tokenizer.json"
_MASK: Final = "attention_mask"
_MULTIPLE: Final = 8
_ANY: Final = -1
_LIMIT_BYTES: Final = 1 << 28
_NO_LIMIT: Final = 1 << 20
"""A ``model_max_length`` beyond this says that there is none."""


def tokenizer_model(
    root: Path,
    name: str,
    inputs: Sequence[Tensor],
    settings: Settings,
    parameters: Mapping[str, str],
) -> tuple[Any, list[File]]:
    """Return the configuration and the files of the model that makes a graph's inputs of texts.

    Args:
        root: The export directory.
        name: The model's name.
        inputs: What the graph reads.
        settings: The user's settings.
        parameters: Further parameters.

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
    path = resolve_inside(root, _TOKENIZER)
    if not path.is_file():
        msg = f"the export {str(root)!r} has no {_TOKENIZER}"
        raise UnsupportedError(
            msg, hint="Serve it without --text, or put the file into the base checkpoint."
        )
    padding = _padding(root, path)
    own = {**parameters, **padding, "multiple": str(_MULTIPLE)}
    if sizes := {each.dims[-1] for each in inputs if each.dims[-1] != _ANY}:
        length = min(sizes)  # a graph of one length
        own |= {"multiple": str(length), "max_length": str(length)}
    config = tokenizer_config(name, inputs, settings, own)
    code = [serving_source("tokenizer.py", "1/model.py"), serving_source("probe.py", "1/probe.py")]
    return config, [*code, File("1/tokenizer.json", path)]


def _padding(root: Path, path: Path) -> dict[str, str]:
    """Return how texts are padded and cut, of the tokenizer's files and the config.

    Where sentence-transformers says how long a text may be, its word counts, as it does there: what
    the tokenizer was last set to is often shorter.
    """
    table = _json(path)
    padding, truncation = table.get("padding") or {}, table.get("truncation") or {}
    config = read_config(root / "hf") if (root / "hf" / "config.json").is_file() else {}
    limits: list[Any] = [longest_text(config)]
    sentence = _beside(path, "sentence_bert_config.json").get("max_seq_length")
    if isinstance(sentence, int) and sentence > 0:
        limits += [sentence]
    else:
        limits += [
            truncation.get("max_length"),
            _beside(path, "tokenizer_config.json").get("model_max_length"),
        ]
    return {
        "pad_id": str(int(padding.get("pad_id", config.get("pad_token_id") or 0))),
        "pad_type_id": str(int(padding.get("pad_type_id", 0))),
        "max_length": str(
            min((int(each) for each in limits if each and each < _NO_LIMIT), default=_NO_LIMIT)
        ),
    }


def _beside(path: Path, name: str) -> dict[str, Any]:
    """Return a file beside `path`; nothing where there is none."""
    file = path.parent / name
    return _json(file) if file.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    again = "Export again."
    return read_table(path, _LIMIT_BYTES, ExportDirectoryError, absent=again, damaged=again)
