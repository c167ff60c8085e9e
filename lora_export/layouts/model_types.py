"""The model types that optimum-onnx and transformers.js know, as their versions list them.

``data/model_types.json`` is made of the installed clients by a test of ``make test-clients``, which
fails where they list others.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, Final

from lora_export.core.errors import UnsupportedError

__all__ = ["knows_tokenizer", "require_js_type", "require_optimum_type"]

_TABLE: Final = "model_types.json"
_OPTIMUM: Final = "optimum-onnx"
_JS: Final = "transformers.js"
_FEATURES: Final = ("feature-extraction", "sentence-similarity")
"""Tasks for which transformers.js opens every model that is an encoder."""
_TWO_TOWERS: Final = frozenset({"clip", "siglip", "clap", "chinese_clip", "jina_clip", "clipseg"})
_HINT: Final = "ONNX Runtime runs the export itself: lora_export.open_export."


@cache
def _table() -> dict[str, Any]:
    file = resources.files("lora_export.layouts") / "data" / _TABLE
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def require_optimum_type(model_type: str) -> None:
    """Require that the transformers of optimum-onnx knows a model type.

    Raises:
        UnsupportedError: It does not.
    """
    row = _table()[_OPTIMUM]
    if model_type not in row["model_types"]:
        known = f"{_OPTIMUM} {row['version']} runs with transformers {row['transformers']}"
        msg = f"{known}, which does not know the model type {model_type!r}"
        raise UnsupportedError(msg, hint=_HINT)


def require_js_type(model_type: str, task: str) -> None:
    """Require that transformers.js has a class for a model type and a task.

    Raises:
        UnsupportedError: It does not.
    """
    row = _table()[_JS]
    if task in _FEATURES and model_type not in _TWO_TOWERS:
        return
    known = row["model_types"].get(task)
    if known is None or model_type in _TWO_TOWERS:
        msg = f"{_JS} {row['version']} has no class for {task} of the model type {model_type!r}"
        raise UnsupportedError(msg, hint=_HINT)
    if model_type not in known:
        msg = f"{_JS} {row['version']} does not know the model type {model_type!r} for {task}"
        raise UnsupportedError(msg, hint=f"Supported: {', '.join(known)}. {_HINT}")


def knows_tokenizer(name: str) -> bool:
    """Return whether the transformers of optimum-onnx has a tokenizer of this class."""
    return name in _table()[_OPTIMUM]["tokenizer_classes"]
