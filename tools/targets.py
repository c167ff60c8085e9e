"""The table of targets in docs/tensorrt.md, written from the code.

    python -m tools.targets

A test compares the page with `table`, so that neither goes without the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lora_export.core.targets import TARGETS, Target

__all__ = ["PAGE", "replaced", "table"]

PAGE: Final = Path(__file__).parents[1] / "docs" / "tensorrt.md"
_BEGIN, _END = "<!-- targets: written by tools/targets.py -->\n", "<!-- /targets -->"


def table() -> str:
    """Return the targets with TensorRT as tables of Markdown: what they are, and who says so."""
    rows = [row for row in TARGETS.values() if row.tensorrt]
    lines = [
        "| target | compute capability | TensorRT | computes in | opset | memory, GiB | DLA |",
        "|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        "| fact | targets | source |",
        "|---|---|---|",
    ]
    by_source: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for fact, source in row.sources.items():
            by_source.setdefault((source, fact), []).append(row.name)
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (source, fact), names in by_source.items():
        together.setdefault((source, tuple(names)), []).append(fact)
    lines += [
        f"| {', '.join(facts)} | {', '.join(names)} | {source} |"
        for (source, names), facts in together.items()
    ]
    return "\n".join(lines) + "\n"


def replaced(page: str) -> str:
    """Return the page with its table as it is now."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table()}{_END}{after}"


def _line(row: Target) -> str:
    offered = ", ".join(
        f"{version} ({software})" if version not in software else version
        for version, software in zip(row.tensorrt, row.software, strict=True)
    )
    capability = ".".join(map(str, row.compute_capability or ())) or "the device's"
    memory = ", ".join(map(str, row.memory_gib)) or "the device's"
    cells = [
        f"`{row.name}`",
        capability,
        offered,
        ", ".join(row.precisions),
        str(row.opset),
        memory + (" (shared with the host)" if row.shared_memory else ""),
        "; ".join(f"{version} ({devices})" for version, devices in row.dla) or "no",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text("utf-8")), "utf-8")
