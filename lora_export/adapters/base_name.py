"""The base that an adapter names, compared with the given base by name.

Folders that exist are compared by their contents instead (``weights/named_base.py``).

PEFT records what its base was loaded from (``base_model_name_or_path``): an id of the hub, or a
path on somebody's machine, which says nothing. Nor does the name of a local base, nor the
``_name_or_path`` in its config: that of a fine-tuned model often names what it was tuned from. So
two ids of the hub are compared, and no other names; of these the last part, for owners and mirrors
differ. The same weights quantized, in which adapters are trained and into which none is merged, go
by their own name with an ending.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from lora_export.core.hub import is_hub_id

if TYPE_CHECKING:
    from lora_export.adapters.canonical import Adapter

__all__ = ["note_on_base"]

_ENDINGS: Final = re.compile(
    r"(?:[-_.](?:unsloth|bnb|nf4|quantized|gptq|awq|gguf|mlx|hf|[48]-?bits?|int[48]|fp8|fp16|bf16))+$"
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_FOLDERS: Final = frozenset(
    [
        "base",
        "bases",
        "checkpoint",
        "checkpoints",
        "ckpt",
        "data",
        "llm",
        "llms",
        "model",
        "models",
        "output",
        "outputs",
        "results",
        "runs",
        "saved",
        "weights",
    ]
)
"""What is no owner on the hub, but the first part of somebody's relative path."""

_WITHOUT_OWNER: Final = frozenset(
    [
        "albert-base-v2",
        "bert-base-cased",
        "bert-base-uncased",
        "bert-large-cased",
        "bert-large-uncased",
        "camembert-base",
        "distilbert-base-cased",
        "distilbert-base-uncased",
        "distilgpt2",
        "distilroberta-base",
        "gpt2",
        "gpt2-large",
        "gpt2-medium",
        "gpt2-xl",
        "roberta-base",
        "roberta-large",
        "t5-base",
        "t5-large",
        "t5-small",
        "xlm-roberta-base",
        "xlm-roberta-large",
    ]
)
"""Models that the hub had before there were owners, and still answers to."""


def note_on_base(adapter: Adapter, base: str | None) -> str | None:
    """Return a sentence for the user, where an adapter names another base than `base`.

    Args:
        adapter: The adapter.
        base: The hub's id of the base (``hf://owner/name@commit``); None where it has none.
    """
    named = adapter.base_name
    if not isinstance(named, str) or base is None or not base.startswith("hf://"):
        return None
    given, _, commit = base.removeprefix("hf://").partition("@")
    if not _is_on_hub(named):
        return None
    if _core(named) == _core(given):
        return _note_on_revision(adapter, given, commit)
    return (
        f"adapter {adapter.source!r} names the base {named!r}, and {given!r} is given; "
        "matching shapes do not prove that it was trained on this base"
    )


def _note_on_revision(adapter: Adapter, given: str, commit: str) -> str | None:
    """Return a sentence where an adapter names another commit; branches and tags are left alone."""
    revision = adapter.config.get("revision")
    named = str(adapter.base_name).removeprefix("hf://").partition("@")[0]
    if named != given or not isinstance(revision, str) or not _COMMIT.fullmatch(revision):
        return None
    if revision == commit or not _COMMIT.fullmatch(commit):
        return None
    return (
        f"adapter {adapter.source!r} names the commit {revision[:12]} of {given!r}, and "
        f"{commit[:12]} is given: the weights may differ"
    )


def _is_on_hub(name: str) -> bool:
    """Whether a name is an id of the hub rather than somebody's path."""
    if name in _WITHOUT_OWNER:
        return True
    owner = name.removeprefix("hf://").partition("/")[0]
    return is_hub_id(name) and owner.lower() not in _FOLDERS and not os.path.exists(name)  # noqa: PTH110  (False for what no path can be)


def _core(name: str) -> str:
    """Return the common part of the names of one model."""
    last = name.removeprefix("hf://").partition("@")[0].rpartition("/")[2].lower()
    return _ENDINGS.sub("", last).removeprefix("meta-")
