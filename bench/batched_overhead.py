"""Cost of a row of its own adapter, by the number of adapters, their rank and the batch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import _measure
from _architectures import MODELS
from _checkpoints import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = "batched_overhead"
MODEL = "roberta-base"
COUNTS: Final = (2, 8, 64)
RANKS: Final = (4, 16, 64)
METHOD = (
    "RoBERTa-base, random weights, n adapters of rank r on q and v, no heads, one batched export "
    "for each n and r; rows of 16 tokens, each with another adapter as far as they go, against the "
    "same rows in the base's graph. ONNX Runtime, one process for each export, runs interleaved in "
    "random order, medians of paired ratios with bootstrap intervals."
)


def adapter(folder: Path, rank: int, seed: int) -> Path:
    """Write a random adapter of q and v."""
    model = replace(MODELS[MODEL], rank=rank, task_type="SEQ_CLS")
    shapes = {name: shape for name, shape in model.adapter_tensors().items() if "lora_" in name}
    folder.mkdir(parents=True)
    config = {**model.adapter_config(), "modules_to_save": None, "task_type": None}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    write_safetensors(folder / "adapter_model.safetensors", shapes, "float32", seed)
    return folder


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=40)
    with _measure.Session(CLAIM, options, peers=False) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        found: dict[str, Any] = {}
        for rank in RANKS:
            for count in COUNTS:
                folder = session.work / f"r{rank}-n{count}"
                given = [
                    word
                    for at in range(count)
                    for word in ("--adapter", adapter(folder / f"tenant-{at}", rank, at))
                ]
                export = folder / "export"
                session.ours(
                    "merge-and-build", "--no-verify", "--no-latency", "--base", base, *given,
                    "--mode", "batched", "--out", export,
                )  # fmt: skip
                found[f"rank {rank}, {count} adapters"] = session.answer(
                    [sys.executable, _measure.BENCH / "_serving.py", "overhead", export,
                     str(session.repeat)]
                )  # fmt: skip
                session.remove(folder)
        session.report("Rows of a batched graph over rows of the base", METHOD, {}, [], found=found)
        for name, row in found.items():
            cells = (f"{batch}: {ratio:.3f}" for batch, (ratio, _) in row.items())
            print(f"  {name:24} by batch  {'   '.join(cells)}")


if __name__ == "__main__":
    main()
