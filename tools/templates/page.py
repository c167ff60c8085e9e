"""Write the table of ``docs/templates.md``: the architectures and tasks that need no torch.

Usage: python -m tools.templates.page
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lora_export.graph.templates.shipped import read_index

__all__ = ["PAGE", "rewritten"]

PAGE: Final = Path(__file__).parents[2] / "docs/templates.md"
_START: Final = "<!-- templates: written by tools/templates/page.py -->\n"
_END: Final = "<!-- /templates -->\n"


def table() -> str:
    """Return the table in Markdown: a row for each architecture and task."""
    found: dict[tuple[str, str], set[str]] = {}
    for row in read_index()["templates"]:
        task = row["task"] + (f" ({row['sentence']})" if row["sentence"] else "")
        found.setdefault((row["model_type"], task), set()).add(row["dtype"])
    lines = ["| model type | task | dtypes |", "|---|---|---|"]
    lines += [
        f"| `{model_type}` | {task} | {', '.join(sorted(dtypes))} |"
        for (model_type, task), dtypes in sorted(found.items())
    ]
    return "\n".join(lines) + "\n"


def rewritten(page: str) -> str:
    """Return the page with the table of today's templates."""
    before, rest = page.split(_START)
    return f"{before}{_START}\n{table()}\n{_END}{rest.split(_END, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
