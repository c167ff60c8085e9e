"""Four bits by others: onnxruntime-genai's model builder and Olive, beside ours.

A Llama of 110 M parameters with an adapter is built by genai's builder and by us with what it
quantizes, and both generate in genai's own loop. The two trained recipes are quantized by Olive and
by us from the same merged float graph, and compared with it on held-out texts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _environment
import _measure
import numpy as np
from _peer_texts import RECIPES

from lora_export.ondevice.judge.ratios import bootstrap_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

CLAIM: Final = "quantized_peers"
DECODER: Final = "llama-110m"
CONTEXTS: Final = (128, 512, 1500)
BLOCK: Final = 32
METHOD: Final = (
    "Int4 in blocks of 32. Decoder: random weights, LoRA of rank 16 on all linear layers, merged; "
    "genai's builder needs PEFT's merge before it, whose seconds are added. It keeps embeddings in "
    "float32, and so does the row 'as genai'; 'default' has them in int8. Seconds and peak memory "
    "of whole processes, the trace included. Tokens are timed in genai's loop, both models in one "
    "process in turn, prompt and 32 new tokens, medians of paired ratios with bootstrap intervals. "
    "Recipes: Olive's `quantize --algorithm rtn` on our merged float graph, and ours by "
    "`--quantize int4`; KL in nats against the float graph, in ONNX Runtime's default session. "
    "Bytes are of graphs and weights that one model needs; Olive stores embeddings in int4."
)


class Bench(_measure.Session):
    """The session, and the interpreters of both peers."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(CLAIM, options, peers=False)
        self.genai = _environment.ensure_peers(options.genai_python, "genai")
        self.olive = _environment.ensure_peers(options.olive_python, "olive")

    def by_genai(self, base: Path, adapter: Path, out: Path) -> _measure.Run:
        """Run PEFT's merge and the builder."""
        merged = self.work / "merged"
        script = _measure.BENCH / "_peer_merge.py"
        first = self.run([self.genai, script, base, adapter, merged, "AutoModelForCausalLM"])
        self.python(_measure.BENCH / "_word_tokenizer.py", merged)
        second = self.run(
            [self.genai, "-m", "onnxruntime_genai.models.builder", "-m", merged, "-o", out,
             "-p", "int4", "-e", "cpu", "-c", self.work / "genai-cache", "--extra_options",
             f"int4_block_size={BLOCK}"]
        )  # fmt: skip
        self.remove(merged)
        return first + second

    def by_us(self, base: Path, adapter: Path, out: Path, *more: str | Path) -> _measure.Run:
        """Run an export with the trace in it, and lay it out for genai."""
        cache = self.work / "empty-cache"
        run = self.ours(
            "merge-and-build", "--quiet", "--no-verify", "--base", base, "--adapter",
            f"one={adapter}", "--dtype", "float32", "--quantize", "int4", *more,
            "--out", out, cache=cache,
        )  # fmt: skip
        self.remove(cache)
        return run

    def quantized_by_olive(self, graph: Path, out: Path) -> _measure.Run:
        """Quantize a graph with round to nearest, Olive's way that has no zero points."""
        return self.run(
            [self.olive, "-m", "olive", "quantize", "-m", graph, "--algorithm", "rtn",
             "--precision", "int4", "-o", out, "--disable_telemetry"]
        )  # fmt: skip


def decoder(bench: Bench) -> tuple[dict[str, Any], list[_measure.Target]]:
    """Return the decoder's rows and targets."""
    base = bench.generate("base", DECODER, "decoder", seed=0)
    adapter = bench.generate("adapter", DECODER, "decoder-adapter", seed=1)
    bench.python(_measure.BENCH / "_word_tokenizer.py", base)
    choice = bench.work / "as-genai.yaml"
    choice.write_text("quantize: {weights: int4, embeddings: keep}\n", "utf-8")
    builders = {
        "genai": lambda out: bench.by_genai(base, adapter, out),
        "ours, as genai": lambda out: bench.by_us(base, adapter, out, choice),
        "ours, default": lambda out: bench.by_us(base, adapter, out),
    }
    rows: dict[str, Any] = {}
    folders: dict[str, Path] = {}
    for name, build in builders.items():
        runs = []
        out = bench.work / name.replace(", ", "-").replace(" ", "-")
        for _ in range(bench.repeat):
            if out.exists():
                bench.remove(out)
            runs.append(build(out))
        folders[name] = out
        if name != "genai":
            folders[name] = bench.work / f"{out.name}-layout"
            bench.ours("layout", out, "--for", "genai", "--adapter", "one", "-o", folders[name])
        rows[name] = _measure.summarise_runs(runs) | {"bytes": bytes_of(folders[name])}
    rows["loop"] = {f"context {each}": loop(bench, folders, each) for each in CONTEXTS}
    return rows, decoder_targets(rows)


def decoder_targets(rows: dict[str, Any]) -> list[_measure.Target]:
    ratio = rows["ours, as genai"]["bytes"] / rows["genai"]["bytes"]
    what = f"{DECODER}: bytes over those of genai's builder"
    return [_measure.Target(what, "at most", 1.0, round(ratio, 4))]


def loop(bench: Bench, folders: dict[str, Path], context: int) -> dict[str, Any]:
    """Return the milliseconds a token of each, and ours over genai's."""
    pairs = 5 if context > CONTEXTS[0] else 10
    times = bench.answer(
        [bench.genai, _measure.BENCH / "_genai_loop.py", str(context), "32", str(pairs),
         *(f"{name}={folder}" for name, folder in folders.items())]
    )  # fmt: skip
    found: dict[str, Any] = {}
    for name, each in times.items():
        found[name] = {key: round(statistics.median(ms), 3) for key, ms in each.items()}
        if name != "genai":
            peer, own = (np.array(row["token_ms"]) for row in (times["genai"], each))
            ratio, interval = bootstrap_ratio(peer, own, seed=0)
            found[name] |= {"over genai": round(ratio, 3), "interval": interval}
    return found


def recipe(bench: Bench, name: str, graph: str, kind: str) -> dict[str, Any]:
    """Return bytes and losses of a trained recipe's quantized graphs."""
    outs = {"float": bench.work / f"{name}-float", "ours": bench.work / f"{name}-int4"}
    file = RECIPES / name / "recipe.yaml"
    for way, out in outs.items():
        more = ("--quantize", "int4") if way == "ours" else ()
        bench.ours("merge-and-build", "--quiet", "--no-verify", "--no-latency", file, *more,
                   "--out", out)  # fmt: skip
    olive = bench.work / f"{name}-olive"
    bench.quantized_by_olive(outs["float"] / f"{graph}.onnx", olive)
    plain = bench.work / f"{name}-plain"
    bench.ours("layout", outs["ours"], "--for", "optimum", "--adapter", graph, "-o", plain)
    script = _measure.BENCH / "_quantized_outputs.py"
    rows = bench.answer(
        [sys.executable, script, kind, outs["float"] / "hf", outs["float"] / f"{graph}.onnx",
         f"ours={outs['ours'] / graph}.onnx", f"olive={olive / 'model.onnx'}"]
    )  # fmt: skip
    rows["ours"]["bytes"], rows["olive"]["bytes"] = bytes_of(plain), bytes_of(olive)
    return rows


def bytes_of(folder: Path) -> int:
    """Return the bytes of graphs and weights."""
    return sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.suffix in {".onnx", ".data", ".onnx_data"}
    )


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=2, help="repetitions (2)")
    for name in ("genai", "olive"):
        parser.add_argument(f"--{name}-python", type=Path, help=f"made from peers-{name}.txt")
    parser.add_argument("--peers-python", type=Path, help="not used: these peers are others")
    parser.add_argument("--work-dir", type=Path, help="where checkpoints and graphs go (build/)")
    parser.add_argument("--output", type=Path, default=_measure.RESULTS / f"{CLAIM}.json")
    return parser.parse_args(words)


def main() -> None:
    with Bench(options_of()) as bench:
        rows, targets = decoder(bench)
        quality = {
            name: recipe(bench, name, graph, kind)
            for name, graph, kind in (
                ("minilm-intents", "intents", "intents"), ("gpt2-python", "this", "python"),
            )
        }  # fmt: skip
        targets += [
            _measure.Target(
                f"{name}: KL of ours over Olive's", "at most", 1.0,
                round(each["ours"]["kl"] / each["olive"]["kl"], 4),
            )
            for name, each in quality.items()
        ]  # fmt: skip
        peers = {
            "genai": _environment.peer_versions(bench.genai, ("onnxruntime-genai", "onnxruntime")),
            "olive": _environment.peer_versions(bench.olive, ("olive-ai", "onnxruntime")),
        }
        measured = {
            f"{DECODER}, {name}": {"wall_s": row["wall_s"], "peak_mb": row["peak_mb"]}
            for name, row in rows.items()
            if name != "loop"
        }
        bytes_by = {name: row["bytes"] for name, row in rows.items() if name != "loop"}
        session_more = {"bytes": bytes_by, "loop": rows["loop"], "recipes": quality}
        bench.report("Int4 beside genai's builder and Olive", METHOD, measured, targets,
                     peers=peers, **session_more)  # fmt: skip


if __name__ == "__main__":
    main()
