"""Saved modules inside saved modules, which PEFT can train and save, but not load again.

``modules_to_save`` is a list of ends of module names (``_set_trainable`` in PEFT 0.21,
``utils/other.py``). Each module that one of them fits is copied; where a second one lies inside
it (``["pooler", "pooler.dense"]``), the copy of the outer module holds a copy of the inner one, and
the saved file mixes the two. The same holds for trained token rows of an embedding inside a saved
module. A target of LoRA inside a saved module is no problem: PEFT adds no layers there.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from lora_export.base.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["refuse_nested"]

_WRAPPERS: Final = re.compile(
    r"\.(?:modules_to_save(?:\.default)?|original_module|token_adapter|base_layer)(?=\.)"
)
_ROWS: Final = "trainable_tokens_delta"


def refuse_nested(keys: Iterable[str], config: Mapping[str, Any], source: str) -> None:
    """Raise `UnsupportedError` where a saved module lies inside a saved one.

    Args:
        keys: The keys of the adapter's tensors.
        config: The adapter's config.
        source: The adapter, for messages.
    """
    setting = config.get("modules_to_save")
    ends = tuple(each for each in setting if each) if isinstance(setting, list) else ()
    if not ends or not all(isinstance(each, str) for each in ends):
        return
    for key in keys:
        *modules, leaf = _WRAPPERS.sub("", key).split(".")
        paths = list(accumulate(modules, "{}.{}".format))
        saved = [path for path in paths if path.endswith(ends)]
        if leaf == _ROWS and saved and saved[-1] != paths[-1]:
            saved.append(paths[-1])
        if len(saved) > 1:
            outer, inner = (path.removeprefix("base_model.model.") for path in saved[:2])
            msg = (
                f"adapter {source!r} saves {inner!r} inside {outer!r}, which it saves too "
                f"(modules_to_save: {', '.join(ends)}): PEFT cannot load such an adapter"
            )
            raise UnsupportedError(
                msg,
                hint="Train with the outer module alone in modules_to_save; or export what "
                "merge_and_unload leaves where it was trained.",
            )
