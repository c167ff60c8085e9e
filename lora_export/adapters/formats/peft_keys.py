"""The keys of a PEFT adapter's file, parsed: which module, which part of its update, which adapter.

``save_pretrained`` leaves the adapter's own name out; ``state_dict`` keeps it:

    <module>.lora_A[.NAME].weight, .lora_B[.NAME].weight, .lora_B[.NAME].bias
    <module>.lora_embedding_A[.NAME], .lora_embedding_B[.NAME]
    <module>.lora_magnitude_vector[.NAME][.weight]
    <module>.token_adapter.trainable_tokens_delta[.NAME]
    <module>.modules_to_save[.NAME].<parameter>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.adapters.wrappers import PEFT_PREFIX, unwrap
from lora_export.core.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Key", "parse_keys"]

_DEFAULT: Final = "default"
_PARTS: Final = (
    re.compile(r"(?P<module>.+)\.lora_(?P<kind>[AB])(?:\.(?P<name>[^.]+))?\.(?P<leaf>weight|bias)"),
    re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_[AB])(?:\.(?!weight$)(?P<name>[^.]+))?"),
    re.compile(
        r"(?P<module>.+)\.lora_(?P<kind>magnitude_vector)(?:\.(?!weight$)(?P<name>[^.]+))?"
        r"(?:\.weight)?"
    ),
    re.compile(
        r"(?P<module>.+)\.token_adapter\.(?P<kind>trainable_tokens_delta)(?:\.(?P<name>[^.]+))?"
    ),
)
_KINDS: Final = frozenset(
    {
        "A.weight",
        "B.weight",
        "B.bias",
        "embedding_A",
        "embedding_B",
        "magnitude_vector",
        "trainable_tokens_delta",
    }
)
_SAVED: Final = re.compile(r"\.modules_to_save\.([^.]+)\.")


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: The key without wrappers, PEFT's prefix and the adapter's name.
        module: The module that is updated; None for a parameter that is carried whole.
        kind: The part of the update (``A.weight``, ``embedding_B``); None for such a parameter.
        as_saved: Whether the key is the one that ``save_pretrained`` writes.
    """

    path: str
    module: str | None = None
    kind: str | None = None
    as_saved: bool = True


def parse_keys(keys: Iterable[str], source: str) -> dict[str, Key]:
    """Parse the keys of a file that holds one adapter.

    Args:
        keys: The keys.
        source: The adapter, for messages.

    Raises:
        AdapterError: They are those of several adapters.
    """
    parsed: dict[str, Key] = {}
    names: dict[str | None, str] = {}
    for key in keys:
        path = unwrap(key)
        match = next((found for each in _PARTS if (found := each.fullmatch(path))), None)
        kind = _kind(match) if match else None
        if match is None or kind not in _KINDS:
            parsed[key] = Key(path, as_saved=key == PEFT_PREFIX + path)
            continue
        names.setdefault(match["name"], key)
        plain = key == PEFT_PREFIX + path and match["name"] is None
        parsed[key] = Key(path, match["module"], kind, as_saved=plain)
    if len(names) > 1:
        _refuse_several(names, source)
    own = {_DEFAULT, *(name for name in names if name is not None)}
    return {key: each if each.kind else _without_name(each, own) for key, each in parsed.items()}


def _kind(match: re.Match[str]) -> str:
    leaf = match.groupdict().get("leaf")
    return match["kind"] if leaf is None else f"{match['kind']}.{leaf}"


def _without_name(key: Key, names: set[str]) -> Key:
    path = _SAVED.sub(
        lambda found: ".modules_to_save." if found[1] in names else found[0], key.path
    )
    return key if path == key.path else Key(path, as_saved=False)


def _refuse_several(names: dict[str | None, str], source: str) -> None:
    known = sorted(name for name in names if name is not None)
    if None in names:
        msg = (
            f"adapter {source!r} holds two adapters: {names[None]!r} of one without a name, "
            f"{names[known[0]]!r} of {known[0]!r}"
        )
    else:
        msg = f"adapter {source!r} holds several adapters: {', '.join(map(repr, known))}"
    raise AdapterError(
        msg,
        hint=f"Save one: model.save_pretrained(FOLDER, selected_adapters=[{known[0]!r}]).",
    )
