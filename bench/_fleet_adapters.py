"""Make adapters for a MiniLM, and time adding some of them one by one in one process, as JSON.

Usage: python _fleet_adapters.py make BASE FOLDER COUNT
       python _fleet_adapters.py add BASE FOLDER COUNT EXPORT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file

from lora_export.commands.add import add
from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import make_recipe

_RANK: Final = 8
_WARM: Final = 2
"""Adapters that are added before the clock starts: what is imported by the first is there then."""


def main() -> None:
    what, base, folder, count, *rest = sys.argv[1:]
    if what == "make":
        make(Path(base), Path(folder), int(count))
    else:
        print(json.dumps(times_of_adding(base, Path(folder), int(count), rest[0])))


def make(base: Path, folder: Path, count: int) -> None:
    config = json.loads((base / "config.json").read_text())
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    for at in range(count):
        random = np.random.default_rng(at)
        tensors = {}
        for layer in range(layers):
            for module in ("query", "value"):
                name = f"base_model.model.encoder.layer.{layer}.attention.self.{module}"
                for part, shape in (("A", (_RANK, width)), ("B", (width, _RANK))):
                    values = random.standard_normal(shape, np.float32) * np.float32(0.05)
                    tensors[f"{name}.lora_{part}.weight"] = values
        own = folder / f"adapter-{at:04d}"
        own.mkdir(parents=True)
        save_file(tensors, own / "adapter_model.safetensors")
        (own / "adapter_config.json").write_text(
            json.dumps({
                "peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "r": _RANK,
                "lora_alpha": 2 * _RANK, "target_modules": ["query", "value"], "bias": "none",
                "base_model_name_or_path": None,
            })
        )  # fmt: skip


def times_of_adding(base: str, folder: Path, count: int, export: str) -> dict[str, list[float]]:
    """Return the seconds, of the clock and of the processor, that each adapter took."""
    recipe = {"base": base, "task": "feature-extraction", "output": export,
              "verify": {"enabled": False}, "latency": {"enabled": False}}  # fmt: skip
    merge_and_build(make_recipe(recipe, folder=Path()))
    wall, processor = [], []
    for at, path in enumerate(sorted(folder.iterdir())[: count + _WARM]):
        began, used = time.perf_counter(), time.process_time()
        add(export, [f"adapter-{at:04d}={path}"], base=base)
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {"wall": wall[_WARM:], "processor": processor[_WARM:]}


if __name__ == "__main__":
    main()
