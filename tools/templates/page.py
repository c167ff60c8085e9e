"""Write the table of ``docs/templates.md``: the architectures and tasks that need no torch.

Usage: python -m tools.templates.page
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lora_export.graph.templates.shipped import read_index, served

__all__ = ["PAGE", "rewritten"]

PAGE: Final = Path(__file__).parents[2] / "docs/templates.md"
_START: Final = "<!-- templates: written by tools/templates/page.py -->\n"
_END: Final = "<!-- /templates -->\n"


def table() -> str:
    """Return the table in Markdown: a row for each architecture and task."""
    found: dict[tuple[str, str], set[tuple[str, int]]] = {}
    for row in read_index()["templates"]:
        task = row["task"] + (f" ({row['sentence']})" if row["sentence"] else "")
        pairs = found.setdefault((row["model_type"], task), set())
        pairs |= {(dtype, opset) for dtype, opset in served(row)}
    lines = ["| model type | task | dtypes | opsets |", "|---|---|---|---|"]
    for (model_type, task), pairs in sorted(found.items()):
        dtypes = ", ".join(sorted({dtype for dtype, _ in pairs}))
        opsets = ", ".join(map(str, sorted({opset for _, opset in pairs})))
        lines.append(f"| `{model_type}` | {task} | {dtypes} | {opsets} |")
    return "\n".join(lines) + "\n"


def rewritten(page: str) -> str:
    """Return the page with the table of today's templates."""
    before, rest = page.split(_START)
    return f"{before}{_START}\n{table()}\n{_END}{rest.split(_END, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
