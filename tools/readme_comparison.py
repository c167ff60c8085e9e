"""The table of other tools in the README, written from ``bench/results/peers.json``.

    python -m tools.readme_comparison

A test compares the README with `replaced`, so that neither changes without the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["README", "replaced", "table"]

_ROOT: Final = Path(__file__).parents[1]
README: Final = _ROOT / "README.md"
_RESULTS: Final = _ROOT / "bench/results/peers.json"
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
_QUIET: Final = 0.1
"""Seconds are shown where other processes kept at most this many cores busy meanwhile."""


def table() -> str:
    """Return a table of Markdown: a row for each tool, a column for each model."""
    rows = json.loads(_RESULTS.read_text("utf-8"))["rows"]
    lines = [f"| | {' | '.join(_WORKS.values())} |", "|---|---|---|---|"]
    for tool, title in _TOOLS.items():
        found = [rows.get(f"{work}:{tool}") for work in _WORKS]
        if not any(found):
            continue  # not measured yet
        cells = [_cell(row) for row in found]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    if "failed" in row:
        return "fails"
    seconds = f"{row['wall_s']['median']:.1f} s, " if row["others_busy_cores"] <= _QUIET else ""
    error = row.get("relative_l2")
    right = "without the head" if error is None else f"{error:.0e}"
    return f"{seconds}{row['peak_mb']['median'] / 1000:.2f} GB, {right}"


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
