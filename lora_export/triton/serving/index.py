"""``serving.json``: what a repository's model serves; read again whenever it has changed.

Whoever adds an adapter puts its files there first and then gives the new index its name, so that
a reader sees the old state or the new one. Files have names of their own content: the file that
an index names is never another one later.
"""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

__all__ = [
    "ADAPTER_NAME",
    "FORMAT",
    "INDEX_NAME",
    "Adapter",
    "BadIndexError",
    "Index",
    "Watch",
    "index_bytes",
    "read_index",
]

INDEX_NAME = "serving.json"
FORMAT = "lora-export-serving/1"
ADAPTER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LIMIT_BYTES = 1 << 26
_DAMAGED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Way:
    """The properties of a serving mode.

    Attributes:
        shares_session: Whether all adapters run in the session of the shared graph, which is opened
            first; else each has a session, and that of the base opens when it is asked for.
        mixes_adapters: Whether the rows of one batch may have an adapter each.
    """

    shares_session: bool
    mixes_adapters: bool


WAYS = {
    "merged": Way(shares_session=False, mixes_adapters=False),
    "swappable": Way(shares_session=True, mixes_adapters=False),
    "batched": Way(shares_session=True, mixes_adapters=True),
    "merge_at_load": Way(shares_session=False, mixes_adapters=False),
}


class BadIndexError(Exception):
    """The index is missing, damaged, or names a file outside its folder."""


@dataclass(frozen=True)
class Adapter:
    """One adapter.

    Attributes:
        file: Its graph (``merged``) or its pack; empty where its values are in the shared graph.
        nbytes: What it takes when it is loaded.
        row: Its row in the stacks of a batched graph.
        width: How many of the logits it has there; None for all.
    """

    file: str
    nbytes: int
    row: int = 0
    width: int | None = None


@dataclass(frozen=True)
class Matrix:
    """A weight of the base graph to which a merge at load adds ``A B``.

    Attributes:
        initializer: Its name in the graph and in the weight file.
        out_axis: The axis of the outputs: 1 where it is stored ``[in, out]``, else 0.
    """

    initializer: str
    out_axis: int


@dataclass(frozen=True)
class Index:
    """The adapters that are served, and how they are run.

    Attributes:
        way: ``merged``: a session for each adapter; ``swappable``, ``batched``: one graph for all;
            ``merge_at_load``: the base graph, its changed weights computed when it is opened.
        graph: The graph that adapters share; that of the base where they have their own.
        graph_bytes: What a session of it takes.
        weights: The base's weight file, for a merge at load.
        base: Whether the base may be asked for; not where only adapters bring a head.
        fingerprint: That of the base checkpoint.
        inputs: Names of the graph's inputs, in order.
        outputs: Names of its outputs; the first is the one whose width may differ.
        adapters: The adapters by name.
        matrices: What a merge at load adds to, by the name of A's input.
        axes: The axes of the inputs, by name: a size that is the caller's has a name, "" if none.
        base_width: How many of the logits of a batched graph the base has; None for all.
    """

    way: str
    graph: str
    graph_bytes: int
    weights: str
    base: bool
    fingerprint: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    adapters: dict[str, Adapter]
    matrices: dict[str, Matrix]
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    base_width: int | None = None

    @property
    def shares_session(self) -> bool:
        """Whether all adapters run in the session of the shared graph."""
        return WAYS[self.way].shares_session

    @property
    def mixes_adapters(self) -> bool:
        """Whether the rows of one batch may have an adapter each."""
        return WAYS[self.way].mixes_adapters


def read_index(folder: Path) -> Index:
    """Return the index of a folder.

    Raises:
        BadIndexError: It is damaged.
        OSError: It is missing.
    """
    return parse_index(index_bytes(folder), folder)


def index_bytes(folder: Path) -> bytes:
    """Return the content of the index of a folder, which is a file of bounded size.

    Raises:
        BadIndexError: It is something else.
        OSError: It is missing.
    """
    path = folder / INDEX_NAME
    if not stat.S_ISREG(path.stat().st_mode):
        msg = f"{INDEX_NAME} is not a file"
        raise BadIndexError(msg)
    with path.open("rb") as stream:
        data = stream.read(_LIMIT_BYTES + 1)
    if len(data) > _LIMIT_BYTES:
        msg = f"{INDEX_NAME} has more than {_LIMIT_BYTES} bytes"
        raise BadIndexError(msg)
    return data


def parse_index(data: bytes, folder: Path) -> Index:
    """Return the index that `data` states.

    Raises:
        BadIndexError: It is not one, or a path in it leads outside `folder`.
    """
    try:
        table = json.loads(data)
        if table["format"] != FORMAT:
            msg = f"its format is {table['format']!r}, not {FORMAT!r}"
            raise BadIndexError(msg)
        if table["way"] not in WAYS:
            msg = f"unknown way {table['way']!r}"
            raise BadIndexError(msg)
        index = Index(
            way=table["way"],
            graph=_text("graph", table["graph"]),
            graph_bytes=_whole("graph_bytes", table["graph_bytes"]),
            weights=_text("weights", table["weights"]),
            base=table["base"] is True,
            fingerprint=_text("fingerprint", table["fingerprint"]),
            inputs=tuple(_text("an input", each) for each in table["inputs"]),
            outputs=tuple(_text("an output", each) for each in table["outputs"]),
            adapters={name: _adapter(name, row) for name, row in table["adapters"].items()},
            matrices={
                name: Matrix(
                    _text("initializer", row["initializer"]), _whole("out_axis", row["out_axis"])
                )
                for name, row in table["matrices"].items()
            },
            axes={
                name: tuple(each if isinstance(each, str) else "" for each in axes)
                for name, axes in table.get("axes", {}).items()
            },
            base_width=_width("the base", table.get("base_width")),
        )
    except _DAMAGED as error:
        msg = f"{INDEX_NAME} is damaged: {type(error).__name__}: {error}"
        raise BadIndexError(msg) from error
    for file in (index.graph, index.weights, *(each.file for each in index.adapters.values())):
        locate(folder, file)
    return index


def _adapter(name: str, row: dict[str, object]) -> Adapter:
    if ADAPTER_NAME.fullmatch(name) is None:
        msg = f"{name!r} is not a name of an adapter"
        raise ValueError(msg)
    return Adapter(
        _text(f"file of {name!r}", row["file"]),
        _whole(f"nbytes of {name!r}", row["nbytes"]),
        _whole(f"row of {name!r}", row["row"]),
        _width(repr(name), row["width"]),
    )


def _width(whose: str, width: object) -> int | None:
    return None if width is None else _whole(f"width of {whose}", width)


def _whole(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        msg = f"{what} is {value!r}, no number of 0 or more"
        raise ValueError(msg)
    return value


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        msg = f"{what} is {value!r}, no text"
        raise TypeError(msg)
    return value


def locate(folder: Path, file: str) -> Path:
    """Return ``folder / file``, refusing what leads outside.

    Raises:
        BadIndexError: `file` is absolute or climbs.
    """
    pure = PurePosixPath(file)
    if pure.is_absolute() or ".." in pure.parts or "\0" in file:
        msg = f"{INDEX_NAME} names {file!r}, which leads outside"
        raise BadIndexError(msg)
    return folder / pure


class Watch:
    """The index of a folder; a look costs one ``stat``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: tuple[int, int, int] | None = None

    def changed(self) -> Index | None:
        """Return the index if it is another one than at the last call, else None.

        Raises:
            BadIndexError: It is damaged; the next call looks again only where it has changed.
            OSError: It is missing.
        """
        path = self.folder / INDEX_NAME
        state = path.stat()
        stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
        if stamp == self._seen:
            return None
        self._seen = stamp
        return read_index(self.folder)
