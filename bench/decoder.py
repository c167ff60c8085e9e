"""A decoder in onnxruntime-genai: its own builder's graphs beside ours of the form ``ort``.

Float32 and int4: milliseconds a token and of a prompt at several lengths of context, bytes, seconds
and memory of the builds. Then an adapter as inputs, over the same adapter merged and over the graph
that genai's builder makes of an adapter, and the bytes that a step allocates. About 30 minutes on
two idle cores; ``--short`` takes one context and few pairs, about 6 minutes; ``--large`` adds an
adapter as inputs of 1.1 B parameters in float32, about 12 minutes and 30 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _environment
import _measure
import numpy as np
from _allocated_steps import allocated

from lora_export.ondevice.judge.ratios import bootstrap_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CLAIM: Final = "decoder"
MODEL: Final = "llama-110m"
LARGE: Final = "llama-1b"
LONG: Final = "llama-long"
CONTEXTS: Final = (128, 512, 1500)
TOKENS: Final = 32
ROUNDS: Final = 5
PAIRS: Final = 3
SHORT: Final = ((128,), 2)
LARGE_TOKENS: Final = 8
PRECISIONS: Final = {"float32": "fp32", "int4": "int4"}
BLOCK: Final = 32
SWAPPED: Final = {"token_ms": 1.09, "prefill_ms": 1.07}
SWAPPED_LARGE: Final = {"token_ms": 1.04, "prefill_ms": 1.04}
LENGTHS: Final = (512, 1500, 4000)
GROWTH: Final = 0.1
"""The share of the cache's growth by which what a step allocates may grow: scores of the heads."""
PEER: Final = "genai"
AGAIN: Final = "genai again"
LORA: Final = "genai's LoRA graph"
FLOAT_BYTES: Final = 4
METHOD: Final = (
    "A Llama of 110 M parameters, random weights, LoRA of rank 16 on all linear layers. Every "
    "directory is run in onnxruntime-genai's own loop: all of them in one process, in random "
    "order in each pair; medians of paired ratios with bootstrap intervals; the same directory "
    "twice (A/A) says what is noise. The memory that a process gets for its weights makes a file "
    "up to 7 % faster or slower: the pairs are of several processes, which open the files in turn "
    "in other orders. genai's builder needs PEFT's merge before it, whose seconds are added. "
    "Seconds and peak memory of whole processes, the trace included. Int4 in blocks of 32, "
    "embeddings in float32 on both sides. genai's LoRA graph is its builder's with adapter_path: "
    "A and B are constants there, and lora_scale is none of its inputs. Bytes that a step "
    "allocates: requests to malloc without ONNX Runtime's arena, a Llama of 4 layers of the same "
    "width. At most 1.00 means: the lower end of the interval is at most 1.00, and the median at "
    "most 1.02."
)


class Bench(_measure.Session):
    """The session, and the interpreter of genai."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(CLAIM, options, peers=False)
        self.genai = _environment.ensure_peers(options.genai_python, "genai")
        self.contexts, self.pairs = SHORT if options.short else (CONTEXTS, PAIRS)
        self.model(MODEL)

    def model(self, name: str) -> None:
        """Make a base and its adapter, which later builds are of."""
        self.base = self.generate("base", name, f"{name}-base", seed=0)
        self.adapter = self.generate("adapter", name, f"{name}-adapter", seed=1)
        self.python(_measure.BENCH / "_word_tokenizer.py", self.base)

    def by_genai(self, precision: str, out: Path) -> _measure.Run:
        """Run PEFT's merge and the builder."""
        merged = self.work / "merged"
        script = _measure.BENCH / "_peer_merge.py"
        first = self.run(
            [self.genai, script, self.base, self.adapter, merged, "AutoModelForCausalLM"]
        )
        self.python(_measure.BENCH / "_word_tokenizer.py", merged)
        more = ["--extra_options", f"int4_block_size={BLOCK}"] if precision == "int4" else []
        second = self.run(
            [self.genai, "-m", "onnxruntime_genai.models.builder", "-m", merged, "-o", out, "-p",
             PRECISIONS[precision], "-e", "cpu", "-c", self.work / "genai-cache", *more]
        )  # fmt: skip
        self.remove(merged)
        return first + second

    def lora_by_genai(self, out: Path) -> None:
        """Run the builder on base and adapter: a graph with A and B beside each weight."""
        self.run(
            [self.genai, "-m", "onnxruntime_genai.models.builder", "-m", self.base, "-o", out,
             "-p", "fp32", "-e", "cpu", "-c", self.work / "genai-cache", "--extra_options",
             f"adapter_path={self.adapter}"]
        )  # fmt: skip

    def by_us(self, precision: str, out: Path, *more: str) -> _measure.Run:
        """Run an export with the trace in it."""
        cache = self.work / "empty-cache"
        words: list[str | Path] = ["--graph-form", "ort", "--dtype", "float32", *more]
        if precision == "int4":
            recipe = self.work / "int4.yaml"
            recipe.write_text("quantize: {weights: int4, embeddings: keep}\n", "utf-8")
            words.append(recipe)
        run = self.ours(
            "merge-and-build", "--quiet", "--no-verify", "--no-latency", "--base", self.base,
            "--adapter", f"one={self.adapter}", *words, "--out", out, cache=cache,
        )  # fmt: skip
        self.remove(cache)
        return run

    def laid_out(self, export: Path, *more: str) -> Path:
        """Return the directory of an export for genai."""
        folder = export.with_name(f"{export.name}-genai")
        self.ours("layout", export, "--for", "genai", *more, "--replace", "-o", folder)
        return folder

    def loop(
        self, folders: Mapping[str, Path], context: int, tokens: int = TOKENS
    ) -> dict[str, dict[str, list[float]]]:
        """Return the times of each directory, a pair after another, of several processes."""
        names = list(folders)
        found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
        for turn in range(ROUNDS):
            order = [*names[turn % len(names) :], *names[: turn % len(names)]]
            times = self.answer(
                [self.genai, _measure.BENCH / "_genai_loop.py", str(context), str(tokens),
                 str(self.pairs), *(f"{name}={folders[name]}" for name in order)]
            )  # fmt: skip
            for name, row in times.items():
                for key, values in row.items():
                    found[name].setdefault(key, []).extend(values)
        return found


def compared(
    times: Mapping[str, Mapping[str, list[float]]], name: str, over: str
) -> dict[str, Any]:
    """Return the medians of a directory, and its ratios to another with their intervals."""
    row: dict[str, Any] = {}
    for key, values in times[name].items():
        ratio, interval = bootstrap_ratio(np.array(times[over][key]), np.array(values), seed=0)
        row[key] = {
            "median": round(statistics.median(values), 3),
            "ratio": round(ratio, 4),
            "interval": [round(end, 4) for end in interval],
        }
    return row


def against_builder(bench: Bench, precision: str) -> tuple[dict[str, Any], list[_measure.Target]]:
    """Return the rows of one precision, and its targets."""
    runs: dict[str, list[_measure.Run]] = {PEER: [], "ours": []}
    folders: dict[str, Path] = {}
    for repetition in bench.repetitions():
        for name, build in ((PEER, bench.by_genai), ("ours", bench.by_us)):
            out = bench.work / f"{name}-{precision}"
            if repetition:
                bench.remove(out)
            runs[name].append(build(precision, out))
            folders[name] = out
    folders["ours"] = bench.laid_out(folders["ours"], "--adapter", "one")
    sizes = {name: bytes_of(folder) for name, folder in folders.items()}
    rows: dict[str, Any] = {
        "builds": {name: _measure.summarise_runs(each) for name, each in runs.items()},
        "bytes": sizes,
        "loop": {},
    }
    targets = [
        _measure.Target(f"{precision}: bytes over the builder's", "at most", 1.0,
                        round(sizes["ours"] / sizes[PEER], 4)),
        *(
            _measure.ratio_target(f"{precision}: {what} of the build over the builder's",
                                  "at most", limit, read(runs["ours"]), read(runs[PEER]))
            for what, limit, read in (("seconds", 0.5, _measure.walls),
                                      ("memory", 0.3, _measure.peaks_mb))
        ),
    ]  # fmt: skip
    for context in bench.contexts:
        times = bench.loop({**folders, AGAIN: folders[PEER]}, context)
        found = {name: compared(times, name, PEER) for name in times}
        rows["loop"][f"context {context}"] = found
        targets += [
            _measure.at_most_one(
                f"{precision}: {what} at {context} over the builder's",
                found["ours"][key]["ratio"],
                found["ours"][key]["interval"],
            )
            for what, key in (("a token", "token_ms"), ("a prompt", "prefill_ms"))
        ]
    return rows, targets


def swapped(bench: Bench) -> tuple[dict[str, Any], list[_measure.Target]]:
    """Return an adapter as inputs over the same one merged, float32, both of the form ``ort``."""
    export, theirs = bench.work / "swappable", bench.work / "genai-lora"
    bench.by_us("float32", export, "--mode", "swappable")
    bench.lora_by_genai(theirs)
    merged = bench.work / "ours-float32-genai"
    folders = {
        "merged": merged, "swappable": bench.laid_out(export), "merged again": merged,
        LORA: theirs,
    }  # fmt: skip
    rows, targets = {}, []
    for context in bench.contexts[:2]:
        times = bench.loop(folders, context)
        over = {name: compared(times, name, "merged") for name in times}
        peer = compared(times, "swappable", LORA)
        rows[f"context {context}"] = {**over, f"swappable over {LORA}": peer}
        for key, limit in SWAPPED.items():
            for what, row, most in (("merged", over["swappable"], limit), (LORA, peer, 1.0)):
                targets.append(
                    most_of(f"swappable over {what}, {key} at {context}", most, row, key)
                )
    return rows, targets


def most_of(what: str, limit: float, row: Mapping[str, Any], key: str) -> _measure.Target:
    """Return the target that the median of a ratio is at most a limit."""
    low, high = row[key]["interval"]
    return _measure.Target(what, "at most", limit, row[key]["ratio"], (low, high))


def swapped_large(bench: Bench) -> tuple[dict[str, Any], list[_measure.Target]]:
    """Return the same of 1.1 B parameters, at 128 tokens."""
    bench.model(LARGE)
    folders = {}
    for mode, words in (("merged", ("--adapter", "one")), ("swappable", ())):
        export = bench.work / f"large-{mode}"
        bench.by_us("float32", export, "--mode", mode)
        folders[mode] = bench.laid_out(export, *words)
        bench.remove(export)
    times = bench.loop(folders, CONTEXTS[0], LARGE_TOKENS)
    rows = {name: compared(times, name, "merged") for name in times}
    targets = [
        most_of(f"1.1 B, swappable over merged, {key} at 128", limit, rows["swappable"], key)
        for key, limit in SWAPPED_LARGE.items()
    ]
    return rows, targets


def step_bytes(bench: Bench) -> tuple[dict[str, Any], list[_measure.Target]]:
    """Return the bytes that a step allocates behind texts of several lengths."""
    bench.model(LONG)
    ours, theirs = bench.work / "long", bench.work / "long-peer"
    bench.by_us("float32", ours)
    bench.by_genai("float32", theirs)
    laid = bench.laid_out(ours, "--adapter", "one")
    config = json.loads((bench.base / "config.json").read_text("utf-8"))
    position = 2 * config["num_hidden_layers"] * config["hidden_size"] * FLOAT_BYTES
    rows: dict[str, Any] = {"cache": {str(each): each * position for each in LENGTHS}}
    targets = []
    for name, python, runtime, folder in (
        ("genai's builder, in genai", bench.genai, "genai", theirs),
        ("ours, in genai", bench.genai, "genai", laid),
        ("ours, in generate", sys.executable, "generate", ours),
        ("ours, in open_export", sys.executable, "open_export", ours),
    ):
        row = rows[name] = allocated(python, runtime, folder, LENGTHS, bench.work)
        grown = (row[str(LENGTHS[-1])] - row[str(LENGTHS[0])]) / (LENGTHS[-1] - LENGTHS[0])
        targets.append(
            _measure.Target(f"{name}: growth of a step's allocations over that of the cache",
                            "at most", GROWTH, round(grown / position, 4))
        )  # fmt: skip
    return rows, targets


def bytes_of(folder: Path) -> int:
    """Return the bytes of a graph and its weights."""
    return sum(
        file.stat().st_size for file in folder.iterdir() if file.suffix in {".onnx", ".data"}
    )


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=2, help="builds of each side (2)")
    parser.add_argument("--short", action="store_true", help="one context and few pairs")
    parser.add_argument("--large", action="store_true", help="1.1 B parameters too")
    parser.add_argument("--genai-python", type=Path, help="made from peers-genai.txt")
    parser.add_argument("--peers-python", type=Path, help="not used: the peer is another")
    parser.add_argument("--work-dir", type=Path, help="where checkpoints and graphs go (build/)")
    parser.add_argument("--output", type=Path, default=_measure.RESULTS / f"{CLAIM}.json")
    return parser.parse_args(words)


def main() -> None:
    options = options_of()
    with Bench(options) as bench:
        rows: dict[str, Any] = {}
        targets: list[_measure.Target] = []
        for precision in PRECISIONS:
            rows[precision], found = against_builder(bench, precision)
            targets += found
        parts = {"swappable over merged": swapped, "bytes that a step allocates": step_bytes}
        if options.large:
            parts["1.1 B, swappable over merged"] = swapped_large
        for name, part in parts.items():
            rows[name], found = part(bench)
            targets += found
        measured = {
            f"{precision}, {name}": each
            for precision in PRECISIONS
            for name, each in rows[precision].pop("builds").items()
        }
        peers = _environment.peer_versions(bench.genai, ("onnxruntime-genai", "onnxruntime"))
        bench.report(
            "A decoder in onnxruntime-genai, by its builder and by us", METHOD, measured, targets,
            pairs=ROUNDS * bench.pairs, peers=peers, rows=rows,
        )  # fmt: skip


if __name__ == "__main__":
    main()
