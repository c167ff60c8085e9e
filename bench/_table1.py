"""The part of `table1.py` that runs within one process; prints JSON.

Usage: _table1.py agree CHECKPOINT EXPORT | times EXPORTS PROVIDER SHAPES ROUNDS
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _adapter_layers import KINDS, as_torch, insert

from lora_export.core.manifest import read_manifest
from lora_export.core.reports.report_model import as_json
from lora_export.exports.packs import read_pack
from lora_export.graph.adapters.batched_graph import ADAPTER_IDS
from lora_export.ondevice.judge.ratios import bootstrap_ratio
from lora_export.ondevice.judge.timing import Interleaved
from lora_export.runtime.bound import BoundRun
from lora_export.runtime.environment import describe_environment
from lora_export.runtime.ort import open_session, require_provider

WARM_UP_S = 5.0


def graphs(exports: Path) -> dict[str, Path]:
    """Return what is timed over the base: the base again, LoRA's ways, adapter layers."""
    merged = exports / "merged"
    return {
        "base again": merged / "base.onnx",
        "LoRA, merged": merged / "lora.onnx",
        "LoRA, swappable": exports / "swappable" / "swappable.onnx",
        "LoRA, batched": exports / "batched" / "batched.onnx",
        "Pfeiffer / AdapterL": merged / "pfeiffer.onnx",
        "Houlsby / AdapterH": merged / "houlsby.onnx",
    }


def ids(path: Path, rows: int, length: int) -> dict[str, Any]:
    """Return full rows of tokens, and what selects the adapter in a shared graph."""
    words = np.random.default_rng(0).integers(2, 500, (rows, length))
    feeds: dict[str, Any] = {
        "input_ids": words,
        "attention_mask": np.ones_like(words),
        "position_ids": np.tile(np.arange(length), (rows, 1)),
    }
    root = path.parent
    if path.name == "swappable.onnx":
        feeds |= read_pack(root, read_manifest(root), "lora")
    if path.name == "batched.onnx":
        feeds[ADAPTER_IDS] = np.ones(rows, np.int64)
    return feeds


def agree(checkpoint: Path, export: Path) -> dict[str, Any]:
    """Write the graphs with adapter layers; compare each with torch."""
    import torch
    import transformers

    found: dict[str, Any] = {}
    feeds = ids(export, 2, 12)
    for name, kind in KINDS.items():
        path = export / f"{name}.onnx"
        parameters = insert(export / "base.onnx", path, kind)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
            inputs = {key: torch.from_numpy(each) for key, each in feeds.items()}
            before = model(**inputs).logits[:, -1].numpy()
            wanted = as_torch(model, kind)(**inputs).logits[:, -1].numpy()
        run = BoundRun(open_session(path), require_provider("cpu"), feeds)
        run()
        (given,) = run.outputs().values()
        scale = float(np.abs(wanted).max())
        found[name] = {
            "parameters": parameters,
            "relative_difference": float(np.abs(given[:, -1] - wanted).max()) / scale,
            "effect": float(np.abs(wanted - before).max()) / scale,
        }
    return found


def times(exports: Path, provider: str, shapes: str, rounds: int) -> dict[str, Any]:
    """Time each graph against the base, which takes turns with it.

    Both are opened twice, each of them first once: of two sessions of one graph the one may be
    several percent faster as long as it lives, by where its weights came to lie.
    """
    full = require_provider(provider)
    found: dict[str, Any] = {}
    base = exports / "merged" / "base.onnx"
    for name, other in graphs(exports).items():
        paths = {"base": base, "other": other}
        taken: dict[str, list[dict[str, Any]]] = {}
        for seed, order in enumerate((["base", "other"], ["other", "base"])):
            opened = {which: open_session(paths[which], provider=full) for which in order}
            for shape in shapes.split(","):
                rows, length = map(int, shape.split("x"))
                print(f"{name}: {shape}", file=sys.stderr)
                measurement = Interleaved(
                    {
                        which: BoundRun(opened[which], full, ids(paths[which], rows, length))
                        for which in paths
                    },
                    seed=seed,
                )
                measurement.warm_up(limit_s=WARM_UP_S)
                measurement.extend(-(-rounds // 2))
                taken.setdefault(shape, []).append(measurement.times_ms)
            del opened, measurement
        for shape, parts in taken.items():
            base_ms, ms = (np.concatenate([each[which] for each in parts]) for which in paths)
            ratio, interval = bootstrap_ratio(base_ms, ms, seed=0)
            found.setdefault(shape, {})[name] = {
                "ratio": ratio, "interval": interval,
                "base_ms": base_ms.tolist(), "ms": ms.tolist(),
            }  # fmt: skip
    return {"environment": as_json(describe_environment()), "shapes": found}


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "agree":
        print(json.dumps(agree(Path(rest[0]), Path(rest[1]))))
    else:
        print(json.dumps(times(Path(rest[0]), rest[1], rest[2], int(rest[3]))))


if __name__ == "__main__":
    main()
