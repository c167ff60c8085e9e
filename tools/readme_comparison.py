"""The table of other tools in the README, written from two files of ``bench/results``.

    python -m tools.readme_comparison

Exports to float are in ``peers.json``, those to int4 in ``quantized_peers.json``.

A test compares the README with `replaced`, so that neither changes without the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["README", "replaced", "table"]

_ROOT: Final = Path(__file__).parents[1]
README: Final = _ROOT / "README.md"
_FLOAT: Final = _ROOT / "bench/results/peers.json"
_INT4: Final = _ROOT / "bench/results/quantized_peers.json"
_BEGIN: Final = "<!-- comparison: written by tools/readme_comparison.py -->\n"
_END: Final = "<!-- /comparison -->"

_WORKS: Final = {
    "roberta-base": "RoBERTa-base, 3 labels",
    "gpt2": "GPT-2 124 M, KV cache",
    "llama-110m": "Llama 110 M, KV cache",
}
_TOOLS: Final = {
    "ours": "**lora-export**",
    "optimum": "PEFT merge + optimum",
    "olive": "Olive",
    "mobius": "PEFT merge + mobius",
    "genai": "PEFT merge + genai's builder",
}
_INT4_ROWS: Final = {"ours": "ours, as genai", "genai": "genai"}
"""Tools that were measured in int4, and their names there: embeddings in float32 in both."""
_INT4_MODEL: Final = "llama-110m"
_CONTEXT: Final = "context 128"
_NOT_MEASURED: Final = "–"
_ENCODERS: Final = {"roberta-base"}
_DECODERS_ONLY: Final = {"genai"}
_QUIET: Final = 0.1
"""Seconds are shown where other processes kept at most this many cores busy meanwhile."""


def table() -> str:
    """Return a table of Markdown: a row for each tool, a column for each model."""
    rows = json.loads(_FLOAT.read_text("utf-8"))["rows"]
    quantized = json.loads(_INT4.read_text("utf-8"))
    lines = [f"| | {' | '.join(_WORKS.values())} | the Llama in int4 |", "|---|---|---|---|---|"]
    for tool, title in _TOOLS.items():
        cells = [_cell(tool, work, rows.get(f"{work}:{tool}")) for work in _WORKS]
        lines.append(f"| {title} | {' | '.join(cells)} | {_int4_cell(tool, quantized)} |")
    return "\n".join(lines) + "\n"


def _cell(tool: str, work: str, row: dict[str, Any] | None) -> str:
    if row is None:
        decoders_only = tool in _DECODERS_ONLY and work in _ENCODERS
        return "decoders only" if decoders_only else _NOT_MEASURED
    if "failed" in row:
        return "fails"
    seconds = f"{row['wall_s']['median']:.1f} s, " if row["others_busy_cores"] <= _QUIET else ""
    error = row.get("relative_l2")
    right = "without the head" if error is None else f"{error:.0e}"
    return f"{seconds}{row['peak_mb']['median'] / 1000:.2f} GB, {right}"


def _int4_cell(tool: str, results: dict[str, Any]) -> str:
    name = _INT4_ROWS.get(tool)
    if name is None:
        return _NOT_MEASURED
    row = results["measured"][f"{_INT4_MODEL}, {name}"]
    token_ms = results["loop"][_CONTEXT][name]["token_ms"]
    return (
        f"{row['wall_s']['median']:.1f} s, {row['peak_mb']['median'] / 1000:.2f} GB, "
        f"{token_ms:.1f} ms"
    )


def replaced(page: str) -> str:
    """Return the page with its table as it is now."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table()}{_END}{after}"


def main() -> None:
    """Write the table into the README."""
    README.write_text(replaced(README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
