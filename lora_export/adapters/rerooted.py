"""An adapter of a part of the base, or of a model that the base is a part of.

A text model's adapter has ``model.layers.0.…`` where the vision-language model has
``model.language_model.layers.0.…``. The beginning of its names is exchanged where that gives all of
them parameters of the right shape in exactly one way.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import Computed, LowRank, Rows, Saved
from lora_export.adapters.misfits import header_misfit
from lora_export.core.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from lora_export.adapters.canonical import Item
    from lora_export.adapters.name_lookup import Lookup

__all__ = ["CONTAINERS", "find_root", "new_head_path"]

CONTAINERS: Final = frozenset(
    {
        "audio_model",
        "audio_tower",
        "backbone",
        "base_model",
        "language_model",
        "llm",
        "model",
        "module",
        "text_model",
        "thinker",
        "transformer",
        "vision_model",
        "vision_tower",
        "visual",
    }
)
"""Modules that hold a whole model: what may be taken off the beginning of a name."""

_SHOWN: Final = 4


def find_root(lookup: Lookup, items: Sequence[Item], source: str) -> list[tuple[Item, str]]:
    """Return each of `items` with its path in the base; its own where there is none.

    Args:
        lookup: The base's names.
        items: What is not found under its own name.
        source: The adapter, for messages.

    Raises:
        AdapterError: Several parts of the base have parameters of these names and shapes.
    """
    groups: defaultdict[str, list[Item]] = defaultdict(list)
    heads: list[Item] = []
    for item in items:
        groups[_beginning(item.parameter)].append(item)
    for key in [key for key, group in groups.items() if all(isinstance(i, Saved) for i in group)]:
        heads += groups.pop(key)  # a new head, or one that lies beside what is moved
    moved: list[tuple[Item, str]] = []
    roots: set[str] = set()
    for group in groups.values():
        exchange = _exchange_of(lookup, group, source)
        cut, put = exchange or ("", "")
        moved += [(item, _exchange(item.parameter, cut, put)) for item in group]
        if exchange and put.endswith(cut):
            roots.add(put.removesuffix(cut))
    for item in heads:
        paths = [root + item.parameter for root in sorted(roots)]
        path = next((each for each in paths if _fitting(lookup, item, each)), item.parameter)
        moved.append((item, path))
    return moved


def new_head_path(path: str, given: Collection[str], found: Collection[str]) -> str:
    """Return the path of a head that the base lacks, without what all of the names have too much.

    Args:
        path: The head's path in the adapter.
        given: The paths of everything that the adapter changes, as its file has them.
        found: The paths of what the base has, as the base has them.

    >>> new_head_path(
    ...     "module.score.weight",
    ...     ["module.score.weight", "module.model.layers.0.mlp.weight"],
    ...     ["model.layers.0.mlp.weight"],
    ... )
    'score.weight'
    """
    outer = f"{path.partition('.')[0]}."
    wrapped = outer.removesuffix(".") in CONTAINERS and all(map(_starting(outer), given))
    return path.removeprefix(outer) if wrapped and not any(map(_starting(outer), found)) else path


def _starting(text: str) -> Callable[[str], bool]:
    return lambda path: path.startswith(text)


def _beginning(path: str) -> str:
    parts = path.split(".")
    count = next((i for i, part in enumerate(parts) if part not in CONTAINERS), len(parts))
    return ".".join(parts[:count])


def _exchange_of(lookup: Lookup, items: Sequence[Item], source: str) -> tuple[str, str] | None:
    """Return the prefix to remove from the items' paths and the one to add, if there are any."""
    needed = [item for item in items if not isinstance(item, Saved)]
    ways: dict[tuple[str, ...], tuple[str, str]] = {}
    for cut, put in _exchanges(lookup, needed[0].parameter):
        paths = [_exchange(item.parameter, cut, put) for item in needed]
        places = [_fitting(lookup, item, path) for item, path in zip(needed, paths, strict=True)]
        if None not in places:
            ways.setdefault(tuple(place for place in places if place), (cut, put))
    if len(ways) > 1:
        shown = ", ".join(repr(put or "(the top)") for _, put in list(ways.values())[:_SHOWN])
        msg = (
            f"the names of adapter {source!r}, such as {needed[0].parameter!r}, fit {len(ways)} "
            f"parts of the base equally well: {shown}"
        )
        raise AdapterError(
            msg,
            hint="Load the whole model, load the adapter into the part that it was trained for, "
            "and save it from there.",
        )
    return next(iter(ways.values()), None)


def _exchanges(lookup: Lookup, path: str) -> Iterator[tuple[str, str]]:
    """Yield what may be cut off the beginning of `path`, and what the base has in its place."""
    known = [*lookup.names, *lookup.names_made]
    parts = path.split(".")
    for count in range(len(parts) - 1):
        if any(part not in CONTAINERS for part in parts[:count]):
            return
        cut = "".join(f"{part}." for part in parts[:count])
        tail = path[len(cut) :]
        if cut and lookup.find(tail) is not None:  # also with or without the bare model's own name
            yield cut, ""
        for name in known:
            if name == tail or name.endswith(f".{tail}"):
                put = name.removesuffix(tail)
                if put != cut and not any(part.isdigit() for part in put.split(".")):
                    yield cut, put


def _exchange(path: str, cut: str, put: str) -> str:
    return put + path.removeprefix(cut) if path.startswith(cut) else path


def _fitting(lookup: Lookup, item: Item, path: str) -> str | None:
    """Return the name of the base's parameter at `path`, if it has the shape for `item`."""
    found = lookup.find(path)
    parameter = None if found is None else lookup.names.find(found)
    if parameter is None:
        return path if lookup.sources_of(path) else None
    if isinstance(item, LowRank):
        delta = [item.b.shape[0], *item.a.shape[1:]]
        fits = item.experts > 1 or sorted(delta) == sorted(parameter.shape)
    elif isinstance(item, Computed):
        fits = header_misfit(parameter, item, conv1d=True) is None
    else:
        rest = 1 if isinstance(item, Rows) else 0
        fits = item.tensors[0].shape[rest:] == parameter.shape[rest:]
    return parameter.name if fits else None
