"""The rows of docs/models.md: what they hold, and how the page shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "DATA",
    "PAGE",
    "TOLERANCE",
    "TOLERANCES",
    "Half",
    "Row",
    "page",
    "rows_by_task",
    "stored_rows",
    "summary",
    "too_far",
]

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "models.md"
DATA: Final = ROOT / "docs" / "models.json"

TOLERANCE: Final = 1e-5
TOLERANCES: Final = {"float16": 2e-2, "bfloat16": 1e-1}
"""Of the dtypes that are measured besides float32, the largest error that a row may have."""

ROUTED: Final = ("Qwen3-MoE", "Mixtral", "OLMoE", "GPT-OSS", "DeepSeek-V3")
ROUTED_TOLERANCE: Final = 0.5
"""Of mixtures of experts: rounding the router's weights sends some tokens to another expert, which
is a jump. Mixtral in bfloat16 is 0.16 from the reference, and 3e-5 from one with rounded weights.
"""


COLUMNS: Final = (
    "family", "task", "class", "nodes", "opset", "cache", "float32", "float16", "bfloat16",
)  # fmt: skip
ENGINES: Final = "builds in TensorRT-RTX"
ENGINES_NOTE: Final = (
    f"*{ENGINES}* says whether TensorRT for RTX builds engines of the graphs, with the default",
    "profiles and on a machine without a GPU; no engine was run. Written by",
    "`python -m tools.model_engines`.",
)
"""The column of engines, which is there once some were built."""


@dataclass(frozen=True)
class Half:
    """The outcome of an export in a two-byte dtype.

    Attributes:
        relative_l2: The largest error over all inputs, against torch in float32.
        refused: Why there is no graph, or no figure.
    """

    relative_l2: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Row:
    """The outcome of one export.

    Attributes:
        family: The family's name.
        task: The task.
        model_class: The class in transformers; empty where none was built.
        nodes: Nodes of the graph.
        opset: Its opset.
        cache: Whether the graph takes past keys and values.
        relative_l2: The largest error over all inputs, against torch.
        refused: Why there is no graph.
        renamed: Whether checkpoints on the hub have other names than the model's parameters.
        operators: How many nodes of newer opsets stand for a whole norm, rotation or attention.
        halves: What the same came to in float16 and bfloat16.
        engines: For each dtype why TensorRT for RTX builds no engine, empty where it builds one;
            empty itself where nothing was tried.
    """

    family: str
    task: str
    model_class: str = ""
    nodes: int = 0
    opset: int = 0
    cache: bool = False
    relative_l2: float | None = None
    refused: str = ""
    renamed: bool = False
    operators: Mapping[str, int] = field(default_factory=dict)
    halves: Mapping[str, Half] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)


def page(rows: Sequence[Row]) -> str:
    """Return the text of docs/models.md."""
    lines = [
        "# Model families",
        "",
        "Every family is built tiny from its config, exported without weights, given random ones,",
        "and compared with torch in float32: several batches and lengths, padding, inputs longer",
        "than any sliding window, and for a cache a prefill followed by single steps. *float32* is",
        "the largest relative L2 error over these inputs, relative to the usual size of outputs",
        "where those of a single token happen to be smaller. Written by `python -m tools.models`.",
        "Of an encoder-decoder, which is two graphs, *nodes* counts those of both.",
        "",
        "*float16* and *bfloat16* are the errors of the graphs that are exported in these dtypes,",
        "against the same reference: torch in float32 with weights that are not rounded. ONNX",
        "Runtime on the CPU runs the float16 graph as it is. It does not compute in bfloat16, so",
        "that the bfloat16 graph is run with its weights and constants rounded to bfloat16 and its",
        "arithmetic in float32: the figure shows that the graph is right, and what the rounding of",
        "weights alone costs. In a mixture of experts that may be much: a token whose experts are",
        "nearly tied goes to another one.",
        "",
        "¹ transformers renames or stacks parameters of this family while it loads a checkpoint of",
        "the hub, and so does the export: by the model's own rules, at creation. The graph's",
        "parameters have the model's names, and an adapter may have these or the hub's.",
        "",
    ]
    built = any(row.engines for row in rows)
    lines += [*ENGINES_NOTE, ""] if built else []
    columns = [*COLUMNS, ENGINES] if built else COLUMNS
    lines += [f"| {' | '.join(columns)} |", f"|{'|'.join(_rule(each) for each in columns)}|"]
    for row in rows:
        if row.refused:
            why = f"not exported: {row.refused}"
            lines.append(
                f"| {row.family} | {row.task} | | | | | {why} | | |{' |' if built else ''}"
            )
            continue
        cache = "yes" if row.cache else "no"
        halves = " | ".join(
            _figure(row.halves[dtype]) if dtype in row.halves else "" for dtype in TOLERANCES
        )
        engines = f" {_engines(row)} |" if built else ""
        lines.append(
            f"| {row.family}{'¹' if row.renamed else ''} | {row.task} | `{row.model_class}` "
            f"| {row.nodes} | {row.opset} "
            f"| {cache} | {row.relative_l2:.1e} | {halves} |{engines}"
        )
    return "\n".join(lines) + "\n"


def _rule(column: str) -> str:
    """Return what stands below the name of a column: numbers of nodes are aligned to the right."""
    return "---:" if column in {"nodes", "opset"} else "---"


def _figure(half: Half) -> str:
    return f"not exported: {half.refused}" if half.refused else f"{half.relative_l2:.1e}"


def _engines(row: Row) -> str:
    """Return ``yes``, the dtypes where not all were tried, or why there is no engine."""
    refused = [f"{dtype}: {why}" for dtype, why in row.engines.items() if why]
    if refused or not row.engines:
        return "; ".join(refused)
    exported = {"float32", *(dtype for dtype, half in row.halves.items() if not half.refused)}
    return "yes" if exported <= set(row.engines) else f"yes ({', '.join(row.engines)})"


def too_far(row: Row) -> bool:
    """Whether a row that is exported disagrees with torch by more than its dtype explains."""
    if row.refused:
        return False
    pairs = [(row.relative_l2, TOLERANCE)]
    routed = row.family in ROUTED
    pairs += [
        (half.relative_l2, ROUTED_TOLERANCE if routed else TOLERANCES[dtype])
        for dtype, half in row.halves.items()
    ]
    return any(error is not None and not error < limit for error, limit in pairs)


def summary(row: Row) -> str:
    """Return one line that says what a row came to."""
    if row.refused:
        return row.refused
    halves = ", ".join(f"{dtype} {_figure(half)}" for dtype, half in row.halves.items())
    return f"{row.nodes} nodes, {row.relative_l2:.1e}, {halves}, {dict(row.operators)}"


def stored_rows() -> list[Row]:
    """Return the rows of docs/models.json."""
    stored = json.loads(DATA.read_text()) if DATA.exists() else []
    return [
        Row(**{**row, "halves": {name: Half(**half) for name, half in row["halves"].items()}})
        if "halves" in row
        else Row(**row)
        for row in stored
    ]


def rows_by_task() -> dict[tuple[str, str], Row]:
    """Return the rows of docs/models.json by family and task."""
    return {(row.family, row.task): row for row in stored_rows()}
