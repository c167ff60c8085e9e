"""The graphs of a bundle as values, read from its index; every file named is in the bundle."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.bundle.index_limits import MOST_ROUNDS
from lora_export.ondevice.device_errors import BundleError, DeviceError
from lora_export.ondevice.judge.golden_checks import Reading
from lora_export.ondevice.trt.build_record import record_file
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.libraries import LIBRARIES, TENSORRT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_export.ondevice.trt.record_table import RefitTable

__all__ = [
    "Check",
    "Contents",
    "EngineSource",
    "GraphSource",
    "LatencyPlan",
    "read_contents",
]

_CACHED: Final = {"float32": "float32", "float16": "float16", "bfloat16": "float32"}
"""NumPy's dtype for a cache; it has no bfloat16, to which TensorRT's runner rounds."""

_MOST_CACHED: Final = 1 << 34
"""The most values that a cache may have for each row of a batch: it is allocated before a run."""

_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+@=,\-]*")
"""What engines are called after: no path."""

_DAMAGED: Final = (DeviceError, KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True)
class EngineSource:
    """The source of an engine, where that is not the graph itself; see `BuildJob`.

    Attributes:
        onnx: The ONNX file that TensorRT parses.
        weights: The weight files that it reads.
        settings: `BuildSettings` as JSON: profiles, precision, flags.
        refit: What is known of each refittable weight.
        defaults: An ``.npz`` of inputs that TensorRT has to be given: a swappable graph's base.
        plan: The plan, where it was built before the bundle was packed. Its record lies beside it;
            graph and weights are not in the bundle.
    """

    onnx: str
    weights: list[str]
    settings: Mapping[str, Any]
    refit: dict[str, RefitTable] = field(default_factory=dict)
    defaults: str | None = None
    plan: str | None = None


@dataclass(frozen=True)
class GraphSource:
    """One ``.onnx`` file.

    Attributes:
        onnx: The file, as ONNX Runtime opens it; None where it is not in the bundle.
        engine: What TensorRT builds of it; None where it cannot.
        reason: Why there is no engine.
    """

    onnx: str | None
    engine: EngineSource | None
    reason: str | None = None


@dataclass(frozen=True)
class Check:
    """One comparison: of the base, or of an adapter.

    Attributes:
        graph: The graph that computes it.
        reading: How its outputs are read.
        encoder: The graph that runs before it, where there are two.
        empty: Of two graphs: heads, width and dtype of each input of the decoder's own cache.
        buffers: Of a static cache: heads, positions, width and dtype of each input that holds it.
        golden: Its golden inputs and outputs; None where there are none.
        reason: Why there are none.
        pack: The adapter's values, where the graph takes them as inputs.
        refit: The weights that the adapter changes, where an engine of the base can be refitted.
        row: The adapter's row, where the graph is batched.
        width: How many logits that row has; None for all.
    """

    graph: str
    reading: Reading
    encoder: str | None = None
    empty: dict[str, list[Any]] = field(default_factory=dict)
    buffers: dict[str, list[Any]] = field(default_factory=dict)
    golden: str | None = None
    reason: str | None = None
    pack: str | None = None
    refit: str | None = None
    row: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class LatencyPlan:
    """The settings of the latency measurement.

    Attributes:
        feeds: The inputs, an ``.npz``; None where none are known.
        reason: Why there are none.
        rounds: Interleaved rounds.
        max_ratio: The gate.
    """

    feeds: str | None
    rounds: int
    max_ratio: float
    reason: str | None = None


@dataclass(frozen=True)
class Contents:
    """The contents of a bundle: its target, graphs and checks.

    Attributes:
        target: The target's name; engines are called after it.
        dtype: The dtype of the weights.
        base_fingerprint: The fingerprint of the base.
        graphs: Every graph, by the stem of its file.
        checks: What is compared, by name; the base first.
        latency: How latency is measured.
        library: The library that runs its engines.
        sources: The SHA-256 of each graph and weight file that plans in the bundle were built from.
    """

    target: str
    dtype: str
    base_fingerprint: str
    graphs: dict[str, GraphSource]
    checks: dict[str, Check]
    latency: LatencyPlan
    library: str = TENSORRT
    sources: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `read_contents` reads them."""
        return asdict(self)


def read_contents(table: Mapping[str, Any], files: Collection[str], where: str) -> Contents:
    """Return the contents of a bundle from its index, once its files are known.

    Args:
        table: The index.
        files: The files of the bundle.
        where: The index, for the error.

    Raises:
        BundleError: Something is missing, of another kind, or names what is not in the bundle.
    """
    try:
        graphs = {_word(stem): _graph(row) for stem, row in table["graphs"].items()}
        checks = {name: _check(row) for name, row in table["checks"].items()}
        contents = Contents(
            _word(table["target"]),
            _text(table["dtype"]),
            _text(table["base_fingerprint"]),
            graphs,
            checks,
            _latency(table["latency"]),
            _library(table.get("library", TENSORRT)),
            {_text(file): _text(digest) for file, digest in table.get("sources", {}).items()},
        )
    except _DAMAGED as error:
        msg = f"the index {where!r} is damaged: {type(error).__name__}: {error}"
        raise BundleError(msg, hint="Pack the bundle again: lora-export bundle.") from error
    for what, names, known in (
        ("file", _files(contents), files),
        ("graph", [g for c in checks.values() for g in _needed(c, graphs)], graphs),
        ("check", ["base"], checks),
    ):
        lost = next((name for name in names if name not in known), None)
        if lost is not None:
            msg = f"the index {where!r} names the {what} {lost!r}, which the bundle does not hold"
            raise BundleError(msg, hint="Pack the bundle again: lora-export bundle.")
    return contents


def _needed(check: Check, graphs: Mapping[str, GraphSource]) -> list[str]:
    """Return the graphs that a check is run with; the base's where its engine is refitted."""
    own = graphs.get(check.graph)
    refit = check.refit is not None and own is not None and own.engine is None
    return [name for name in (check.graph, check.encoder, "base" if refit else None) if name]


def _files(contents: Contents) -> list[str]:
    """Return every file that is named."""
    found: list[str | None] = [contents.latency.feeds]
    for graph in contents.graphs.values():
        engine = graph.engine
        found.append(graph.onnx)
        if engine is not None and engine.plan is not None:
            found += [engine.plan, record_file(engine.plan), engine.defaults]
        elif engine is not None:
            found += [engine.onnx, *engine.weights, engine.defaults]
    for check in contents.checks.values():
        found += [check.golden, check.pack, check.refit]
    return [file for file in found if file is not None]


def _graph(row: Mapping[str, Any]) -> GraphSource:
    engine = row["engine"]
    source = None
    if engine is not None:
        BuildSettings.from_json(engine["settings"])
        source = EngineSource(
            _text(engine["onnx"]),
            [_text(each) for each in engine["weights"]],
            dict(engine["settings"]),
            dict(engine["refit"]),
            _maybe(engine["defaults"]),
            _maybe(engine.get("plan")),
        )
    return GraphSource(_maybe(row["onnx"]), source, _maybe(row["reason"]))


def _check(row: Mapping[str, Any]) -> Check:
    reading = row["reading"]
    if not reading["outputs"]:
        msg = f"nothing is compared of {row['graph']!r}"
        raise ValueError(msg)
    return Check(
        _text(row["graph"]),
        Reading(
            tuple(_text(each) for each in reading["outputs"]),
            *(bool(reading[key]) for key in ("per_token", "choices", "last")),
        ),
        _maybe(row["encoder"]),
        {name: _sizes(each, 2) for name, each in row["empty"].items()},
        {name: _sizes(each, 3) for name, each in row.get("buffers", {}).items()},
        *_maybe_why(row, "golden"),
        _maybe(row["pack"]),
        _maybe(row["refit"]),
        *(None if row[key] is None else _count(row[key]) for key in ("row", "width")),
    )


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        msg = f"{value!r} is not a number of a row or of columns"
        raise ValueError(msg)
    return value


def _sizes(row: Sequence[Any], count: int) -> list[Any]:
    """Return so many sizes and a dtype."""
    *sizes, dtype = row
    plain = all(type(each) is int and each >= 1 for each in sizes)
    if len(sizes) != count or not plain or dtype not in _CACHED or math.prod(sizes) > _MOST_CACHED:
        msg = f"{row!r} is not a cache"
        raise ValueError(msg)
    return [*sizes, _CACHED[dtype]]


def _latency(row: Mapping[str, Any]) -> LatencyPlan:
    rounds, max_ratio = int(row["rounds"]), float(row["max_ratio"])
    if not 1 <= rounds <= MOST_ROUNDS or not 0 < max_ratio < math.inf:
        msg = f"the latency is measured in {rounds} rounds, with the limit {max_ratio}"
        raise ValueError(msg)
    feeds, reason = _maybe_why(row, "feeds")
    return LatencyPlan(feeds, rounds, max_ratio, reason)


def _library(value: object) -> str:
    text = _text(value)
    if text not in LIBRARIES:
        msg = f"{text!r} is not a library that runs engines"
        raise ValueError(msg)
    return text


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        msg = f"{value!r} is not text"
        raise ValueError(msg)
    return value


def _word(value: object) -> str:
    text = _text(value)
    if not _WORD.fullmatch(text):
        msg = f"{text!r} is not a name"
        raise ValueError(msg)
    return text


def _maybe_why(row: Mapping[str, Any], key: str) -> tuple[str | None, str | None]:
    """Return a file and the reason why there is none, one of which there has to be."""
    file, reason = _maybe(row[key]), _maybe(row["reason"])
    if file is None and reason is None:
        msg = f"no {key!r}, and no reason"
        raise ValueError(msg)
    return file, reason


def _maybe(value: object) -> str | None:
    return None if value is None else _text(value)
