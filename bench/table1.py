"""Table 1 of the LoRA paper: one forward pass of GPT-2 medium, base, LoRA and adapter layers.

    python bench/table1.py                                   what two cores can hold
    python bench/table1.py --provider cuda --shapes 32x512,16x256,1x128      the paper's grid
    python bench/table1.py --render                          docs/paper.md of the figures again

`--exports FOLDER` keeps the exports (6 GB) for the next run; `--prepare` only makes them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import _measure

CLAIM: Final = "table1"
PAGE: Final = _measure.BENCH.parent / "docs" / "paper.md"
SHAPES: Final = "1x128,1x16"
PAPER: Final[dict[str, dict[str, float]]] = {
    "LoRA, merged": {"32x512": 0.0, "16x256": 0.0, "1x128": 0.0},
    "Pfeiffer / AdapterL": {"32x512": 2.2, "16x256": 5.0, "1x128": 20.7},
    "Houlsby / AdapterH": {"32x512": 3.0, "16x256": 8.4, "1x128": 30.3},
}
"""The paper's table: percent over the model without adapter layers, on a Quadro RTX 8000."""

METHOD: Final = (
    "GPT-2 medium, random weights, one forward pass that returns the logits of the last position, "
    "no cache. LoRA of rank 4 on c_attn. Adapter layers of 11 M parameters are nodes in the same "
    "base graph, whose outputs are compared with the same layers in torch. Each graph takes turns "
    "with the base graph in one process, and both are opened twice, each of them first once, since "
    "where weights come to lie makes one session faster as long as it lives; the figure is the "
    "median of the paired ratios, less 1, with a block bootstrap's 95 % interval. 'Base again' is "
    "the base's graph in a second session: what it shows is noise."
)
_LEGEND: Final = (
    "Percent over the base graph, with the interval; in italics the paper's own figures, of "
    "another machine (a Quadro RTX 8000) and another runtime."
)
_TOLERANCE: Final = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--provider", default="cpu", choices=("cpu", "cuda", "tensorrt"))
    parser.add_argument("--shapes", default=SHAPES, help=f"batch x length, … ({SHAPES})")
    parser.add_argument("--repeat", type=int, default=40, help="rounds for each shape (40)")
    parser.add_argument("--model", default="gpt2-medium", choices=("gpt2-medium", "gpt2-narrow"))
    parser.add_argument("--exports", type=Path, help="where exports are kept; else they go")
    parser.add_argument("--prepare", action="store_true", help="make the exports, time nothing")
    parser.add_argument("--render", action="store_true", help="only write docs/paper.md again")
    parser.add_argument("--peers-python", type=Path, help="not used: there are no peers here")
    parser.add_argument("--work-dir", type=Path, help="where checkpoints and exports go (build/)")
    parser.add_argument("--output", type=Path, default=_measure.RESULTS / f"{CLAIM}.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page goes (docs/)")
    options = parser.parse_args()
    if not options.render:
        with _measure.Session(CLAIM, options, peers=False) as session:
            exports = options.exports.absolute() if options.exports else session.work / "exports"
            agreement = prepare(session, exports, options.model)
            if options.prepare:
                return
            found = session.answer(
                [sys.executable, _measure.BENCH / "_table1.py", "times", exports,
                 options.provider, options.shapes, str(options.repeat)]
            )  # fmt: skip
            report(session, options, agreement, found)
    page = render(json.loads(options.output.read_text("utf-8")))
    options.page.write_text(page, "utf-8")
    print(page)


def prepare(session: _measure.Session, exports: Path, model: str) -> dict[str, Any]:
    """Make the exports where they are missing; return how the adapter layers agree with torch."""
    kept = exports / "agreement.json"
    if kept.is_file():
        agreement: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return agreement
    base = session.generate("base", model, "base")
    adapter = session.generate("adapter", model, "adapter", seed=1)
    for mode in ("merged", "swappable", "batched"):
        if (exports / mode).is_dir():  # an export is there as a whole or not at all
            continue
        print(f"{CLAIM}: the {mode} export", file=sys.stderr)
        session.ours(
            "merge-and-build", "--no-verify", "--no-latency", "--no-cache", "--logits", "last",
            "--base", base, "--adapter", f"lora={adapter}", "--mode", mode,
            "--out", exports / mode,
        )  # fmt: skip
    agreement = session.answer(
        [sys.executable, _measure.BENCH / "_table1.py", "agree", base, exports / "merged"]
    )
    for name, row in agreement.items():
        if row["relative_difference"] > _TOLERANCE or row["effect"] < 10 * _TOLERANCE:
            sys.exit(f"error: the graph with {name} adapters is not what torch computes: {row}")
    kept.write_text(json.dumps(agreement), "utf-8")
    return agreement


def report(
    session: _measure.Session,
    options: argparse.Namespace,
    agreement: dict[str, Any],
    found: dict[str, Any],
) -> None:
    """Write the JSON: medians as tables, ratios, and LoRA's promise as targets."""
    measured: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for shape, graphs in found["shapes"].items():
        for name, row in graphs.items():
            key = f"{name}, {shape}"
            measured[key] = {"ms": _measure.summarise(row.pop("ms")),
                             "base_ms": _measure.summarise(row.pop("base_ms"))}  # fmt: skip
            rows.setdefault(shape, {})[name] = {
                "percent": round(100 * (row["ratio"] - 1), 2),
                "interval": [round(100 * (each - 1), 2) for each in row["interval"]],
                "ms": measured[key]["ms"]["median"],
                "base_ms": measured[key]["base_ms"]["median"],
            }
    targets = []
    for shape, graphs in rows.items():
        merged, houlsby = graphs["LoRA, merged"], graphs["Houlsby / AdapterH"]
        targets += [
            _measure.Target(f"{shape}: LoRA merged over base, percent", "at most", 3.0,
                            merged["percent"], tuple(merged["interval"])),
            _measure.Target(f"{shape}: adapter layers (Houlsby) over base, percent", "at least",
                            0.0, houlsby["percent"], tuple(houlsby["interval"])),
        ]  # fmt: skip
    session.report(
        "Table 1 of the LoRA paper: latency of GPT-2 medium with LoRA and with adapter layers",
        METHOD,
        measured,
        targets,
        model=options.model,
        provider=options.provider,
        environment=found["environment"],
        agreement=agreement,
        rows=rows,
    )


def render(document: dict[str, Any]) -> str:
    """Return docs/paper.md."""
    environment, rows = document["environment"], document["rows"]
    where = "; ".join(
        [f"{environment['cpu']['model']}, {environment['cpu']['usable']} processors"]
        + [gpu["name"] for gpu in environment["gpus"]]
    )
    how = (
        f"ONNX Runtime's {document['provider']} provider on {where}; {document['repetitions']} "
        f"rounds, load average {document['load_average']['before'][0]} before."
    )
    shapes = [*rows, *(shape for shape in PAPER["LoRA, merged"] if shape not in rows)]
    lines = [
        "# Table 1 of the LoRA paper",
        "",
        "Written by `python bench/table1.py` from `bench/results/table1.json`; not by hand.",
        "",
        f"{document['method']} {how}",
        "",
        _LEGEND,
        "",
        "| | " + " | ".join(shape.replace("x", " × ") for shape in shapes) + " |",
        "|---|" + "---|" * len(shapes),
    ]
    base = [f"{rows[s]['base again']['base_ms']:.1f} ms" if s in rows else "–" for s in shapes]
    lines.append("| base | " + " | ".join(base) + " |")
    for name in next(iter(rows.values())):
        cells = []
        for shape in shapes:
            parts = []
            if (row := rows.get(shape, {}).get(name)) is not None:
                low, high = row["interval"]
                parts.append(f"{row['percent']:+.1f} [{low:+.1f}, {high:+.1f}]")
            if (paper := PAPER.get(name, {}).get(shape)) is not None:
                parts.append(f"*{paper:+.1f}*" if paper else "*0*")
            cells.append(" ".join(parts) or "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    layers = document["agreement"]
    lines += [
        "",
        "The graphs with adapter layers compute what torch does with the same layers: "
        + ", ".join(
            f"{name} ({row['parameters'] / 1e6:.2f} M parameters) to a relative difference of "
            f"{row['relative_difference']:.1e}"
            for name, row in layers.items()
        )
        + ". A merged LoRA adapter is the base's graph with other weights; adapter layers are "
        "further nodes, one after another, and what they cost is largest where a pass is short.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
