"""The same work by us and by others: PEFT with optimum-onnx, Olive, mobius; ``docs/comparison.md``.

Each row is one work by one tool, whole processes with empty caches: wall time, peak memory, what it
wrote, how its graph compares with the unmerged adapter in PEFT, and its time beside our graph's.

    python bench/peers.py                          every row, then the table
    python bench/peers.py --only gpt2:olive        one row; the others stay as they were measured
    python bench/peers.py --table                  the table alone, from the JSON

Environments are made in ``build/`` from ``peers*.txt``, or named with ``--peers-python``,
``--olive-python`` and ``--mobius-python``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _environment
import _measure
import psutil

if TYPE_CHECKING:
    from collections.abc import Collection

CLAIM: Final = "peers"
PAGE: Final = _environment.ROOT / "docs" / "comparison.md"
ADAPTER: Final = "tenant"
SCRIPT: Final = _measure.BENCH / "_peer_graph.py"
QUIET: Final = 0.1
"""Seconds are shown where other processes kept at most this many cores busy meanwhile."""
SHAPE: Final = "a batch of 2 × 24"
_LAST_WORDS: Final = 200
_SAME: Final = 1e-4


@dataclass(frozen=True)
class Work:
    """The task: a base and an adapter of rank 8, exported as one ONNX graph."""

    title: str
    auto_class: str
    task: str
    olive: tuple[str, ...]
    made: str | None = None
    targets: str = ""
    note: str = ""


WORKS: Final = {
    "roberta-base": Work(
        "RoBERTa-base, 3 labels, LoRA r=8 on query and value",
        "AutoModelForSequenceClassification", "text-classification",
        ("--task", "text-classification"),
    ),
    "gpt2": Work(
        "GPT-2 124M, LoRA r=8 on c_attn, KV cache",
        "AutoModelForCausalLM", "text-generation-with-past", (),
        made="gpt2", targets="c_attn",
        note="Olive by its default exporter; with `--use_dynamo_exporter` it had not ended after a "
             "quarter of an hour.",
    ),
    "llama-110m": Work(
        "Llama 110M, LoRA r=8 on q_proj and v_proj, KV cache",
        "AutoModelForCausalLM", "text-generation-with-past", ("--use_dynamo_exporter",),
        made="llama-110m", targets="q_proj,v_proj",
    ),
}  # fmt: skip
TOOLS: Final = {
    "ours": "lora-export",
    "optimum": "PEFT merge, then optimum-onnx",
    "olive": "Olive",
    "mobius": "PEFT merge, then mobius",
}
HEADS: Final = (
    "| tool | seconds | peak memory | written | relative L2 error against PEFT "
    "| latency over ours |"
)
INTRODUCTION: Final = (
    "A base and a LoRA adapter become an ONNX graph, by this package and by three others. Written "
    "by `python bench/peers.py`; samples are in "
    "[bench/results/peers.json](../bench/results/peers.json)."
)
ROWS: Final = tuple(f"{work}:{tool}" for work in WORKS for tool in TOOLS)
METHOD: Final = (
    "Random weights, seeded. Whole processes; where a tool needs two (PEFT's merge first), seconds "
    "are added and the larger peak is taken. The graph is compared with the unmerged adapter in "
    "PEFT on the same inputs, and timed in ONNX Runtime beside ours, 1 × 128 tokens, interleaved, "
    "30 rounds. Seconds are left out where other processes kept more than a tenth of a core busy. "
    "Sizes are of graphs and weights. Ours holds the unadapted base's graph too."
)


class Bench(_measure.Session):
    """The session, and the interpreters of the peers that have one of their own."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(CLAIM, options)
        self.pythons = {
            name: _environment.ensure_peers(getattr(options, f"{name}_python"), name)
            for name in ("olive", "mobius")
            if any(row.endswith(f":{name}") for row in options.only)
        }

    def prepare(self, work: str) -> tuple[Path, Path, Path]:
        """Make the base, the adapter and what PEFT computes with both."""
        base, adapter, kept = (self.work / f"{work}-{what}" for what in ("base", "adapter", "kept"))
        kept = kept.with_suffix(".npz")
        if kept.is_file():
            return base, adapter, kept
        row = WORKS[work]
        if row.made is None:
            self.generate("base", work, base.name, seed=0)
            self.generate("adapter", work, adapter.name, seed=1)
        else:
            scripts = _measure.BENCH / "_random_model.py", _measure.BENCH / "_random_adapter.py"
            self.python(scripts[0], row.made, base)
            self.python(scripts[1], base, row.auto_class, "CAUSAL_LM", row.targets, adapter)
        self.python(SCRIPT, "reference", base, adapter, row.auto_class, kept)
        return base, adapter, kept

    def export(self, work: str, tool: str, out: Path) -> _measure.Run:
        """Run one tool from the base and the adapter to its graph."""
        row = WORKS[work]
        base, adapter, _ = self.prepare(work)
        if tool == "ours":
            cache = self.work / "empty-cache"
            try:
                return self.ours(
                    "merge-and-build", "--no-verify", "--base", base, "--adapter",
                    f"{ADAPTER}={adapter}", "--out", out, cache=cache,
                )  # fmt: skip
            finally:
                shutil.rmtree(cache, ignore_errors=True)
        if tool == "olive":
            command = self.pythons["olive"].parent / "olive"
            try:
                return self.run(
                    [command, "capture-onnx-graph", "-m", base, "-a", adapter, "-o", out,
                     "--disable_telemetry", *row.olive]
                )  # fmt: skip
            finally:
                shutil.rmtree(self.work / ".olive-cache", ignore_errors=True)
        merged = self.work / "merged"
        try:
            first = self.peer_merge(base, adapter, merged, row.auto_class)
            if tool == "optimum":
                return first + self.peer_export(merged, out, row.task)
            command = self.pythons["mobius"].parent / "mobius"
            return first + self.run([command, "build", "--config", merged, out])
        finally:
            shutil.rmtree(merged, ignore_errors=True)


class Others:
    """Return the number of cores that other processes keep busy, on average since this was made."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        everybody = psutil.cpu_times()
        own = sum(os.times()[:4])  # with all children that have ended
        return time.monotonic(), sum(everybody) - everybody.idle - everybody.iowait - own

    def busy_cores(self) -> float:
        """Return the busy seconds of other processes over the seconds that went by."""
        (began, before), (now, after) = self._start, self._now()
        return round(max(0.0, (after - before) / (now - began)), 3)


def measure(bench: Bench, work: str, tool: str) -> dict[str, Any]:
    """Measure one row: an unmeasured run, whose graph is looked at, then the repetitions."""
    out = bench.work / "out"
    row: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    try:
        first = bench.export(work, tool, out)
        graph = next((each for each in _graphs(out, tool) if each.is_file()), None)
        if graph is None:
            return {**row, "failed": "it ends without an error and without a graph"}
        row["bytes"] = sum(
            path.stat().st_size
            for path in out.rglob("*")
            if path.is_file() and path.suffix in {".onnx", ".data", ".onnx_data", ".safetensors"}
        )
        row |= _compared(bench, work, tool, graph)
        shutil.rmtree(out)
        runs = []
        for _ in bench.repetitions():
            runs.append(bench.export(work, tool, out))
            shutil.rmtree(out)
    except SystemExit as error:  # how the session tells of a process that failed
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {**row, "failed": lines[-1][:_LAST_WORDS]}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {**row, **_measure.summarise_runs(runs or [first])}


def _graphs(out: Path, tool: str) -> list[Path]:
    names = (f"{ADAPTER}.onnx",) if tool == "ours" else ("model.onnx", "decoder_model.onnx")
    return [out / name for name in names]


def _compared(bench: Bench, work: str, tool: str, graph: Path) -> dict[str, Any]:
    """Return the error of a graph and its time beside ours, which is built once."""
    _, _, kept = bench.prepare(work)
    if tool == "ours":
        return bench.answer([sys.executable, SCRIPT, "compare", kept, graph])
    ours = bench.work / f"{work}-ours"
    if not ours.is_dir():
        bench.export(work, "ours", ours)
    return bench.answer([sys.executable, SCRIPT, "compare", kept, graph, ours / f"{ADAPTER}.onnx"])


def table(document: dict[str, Any]) -> str:
    """Return ``docs/comparison.md``."""
    machine = document["machine"]
    lines = [
        "# Comparison with other tools",
        INTRODUCTION,
        METHOD,
        _where(machine, document["rows"].values()),
    ]
    lines = [part for line in lines for part in (line, "")]
    for work, row in WORKS.items():
        lines += [f"## {row.title}", "", HEADS, "|---|---|---|---|---|---|"]
        for tool, title in TOOLS.items():
            found = document["rows"].get(f"{work}:{tool}")
            if found is not None:
                lines.append(f"| {title} | {' | '.join(_cells(found, tool))} |")
        lines += ["", *((row.note, "") if row.note else ())]
    lines += ["## Versions", "", "| where | packages |", "|---|---|"]
    for name, versions in document["versions"].items():
        shown = ", ".join(
            f"{package} {version}" for package, version in versions.items() if version
        )
        lines.append(f"| {TOOLS.get(name, name)} | {shown} |")
    return "\n".join(lines) + "\n"


def _where(machine: dict[str, Any], rows: Collection[dict[str, Any]]) -> str:
    size = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_mib'] // 1024} GiB"
    counts = [len(row["wall_s"]["samples"]) for row in rows if "wall_s" in row]
    busy = max(row["others_busy_cores"] for row in rows)
    least, most = min(counts), max(counts)
    runs = f"medians of {least if least == most else f'{least} to {most}'} runs"
    return f"{size}; {runs}; other processes kept at most {busy:.2f} cores busy."


def _cells(row: dict[str, Any], tool: str) -> list[str]:
    if "failed" in row:
        shown = row["failed"].replace("|", "\\|").replace("<", "&lt;")
        return [f"fails: `{shown}`", "–", "–", "–", "–"]
    error = row.get("relative_l2")
    said = f"no logits: the graph ends in `{row['outputs'][0]}`"
    if "fails" in row:
        said += f"; it fails on {SHAPE}"
    if error is not None:
        said = f"{error:.1e}" + ("" if error < _SAME else ", **not the adapter's outputs**")
    ratio = "1"
    if tool != "ours":
        low, high = row["ratio_interval"]
        ratio = f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    busy = row["others_busy_cores"]
    seconds = f"{row['wall_s']['median']:.1f}" if busy <= QUIET else "–"
    return [
        seconds,
        f"{row['peak_mb']['median'] / 1000:.2f} GB",
        f"{row['bytes'] / 1e6:.0f} MB",
        said,
        ratio,
    ]


def versions(pythons: dict[str, Path], peers: Path | None) -> dict[str, Any]:
    """Return the versions of the main packages of each environment."""
    wanted = {"olive": ("olive-ai",), "mobius": ("mobius-onnx",)}
    found: dict[str, Any] = {"ours": _environment.own_versions()}
    if peers is not None:
        found["optimum"] = _environment.peer_versions(peers)
    for name, python in pythons.items():
        packages = (*wanted[name], "transformers", "torch", "onnx", "onnxruntime")
        found[name] = _environment.peer_versions(python, packages)
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=ROWS, action="append", help="a row; repeatable")
    parser.add_argument(
        "--repeat", type=int, default=3, help="repetitions (3); 0: the first run counts"
    )
    for name in ("peers", "olive", "mobius"):
        parser.add_argument(f"--{name}-python", type=Path, help=f"made from bench/{name}*.txt")
    parser.add_argument("--work-dir", type=Path, help="where checkpoints and graphs go (build/)")
    parser.add_argument("--output", type=Path, default=_measure.RESULTS / f"{CLAIM}.json")
    parser.add_argument("--table", action="store_true", help="write the table alone")
    options = parser.parse_args()
    options.only = options.only or list(ROWS)
    return options


def _write(path: Path, document: dict[str, Any]) -> None:
    document["rows"] = {row: document["rows"][row] for row in ROWS if row in document["rows"]}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    options = _options()
    known = json.loads(options.output.read_text("utf-8")) if options.output.is_file() else {}
    document = {"claim": CLAIM, "what": "an adapter and its base to ONNX", "method": METHOD,
                "machine": {}, "versions": {}, "rows": {}, "targets": [], **known}  # fmt: skip
    if not options.table:
        document |= {"method": METHOD, "machine": _environment.describe_machine(),
                     **_environment.describe_commit(), "repetitions": options.repeat}  # fmt: skip
        with Bench(options) as bench:
            document["versions"] |= versions(bench.pythons, bench.peers_python)
            for row in options.only:
                print(f"{CLAIM}: {row}", file=sys.stderr)
                work, tool = row.split(":")
                bench.prepare(work)
                others = Others()
                found = measure(bench, work, tool)
                document["rows"][row] = {**found, "others_busy_cores": others.busy_cores()}
                _write(options.output, document)
    PAGE.write_text(table(document), "utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
