"""Make a base and its adapters for a plan: real configs, a few bytes of weights.

Usage: python _fleet_folders.py FOLDER BASE COUNT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save

CONFIG = {
    "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32,
}  # fmt: skip
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"],
        "task_type": "SEQ_CLS", "base_model_name_or_path": "base"}  # fmt: skip
WEIGHT = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_{}.weight"


def main() -> None:
    root, base, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    write(root / f"base-{base}", "config.json", CONFIG, "model.safetensors",
          {"bert.weight": np.full((16, 16), int(base), np.float32)})  # fmt: skip
    for at in range(count):
        values = {
            WEIGHT.format("A"): np.full((2, 16), at, np.float32),
            WEIGHT.format("B"): np.full((16, 2), int(base), np.float32),
        }
        write(root / f"adapters-{base}" / f"a{at}", "adapter_config.json", LORA,
              "adapter_model.safetensors", values)  # fmt: skip


def write(
    folder: Path, config: str, table: dict[str, object], weights: str, values: dict[str, np.ndarray]
) -> None:
    folder.mkdir(parents=True)
    (folder / config).write_text(json.dumps(table))
    (folder / weights).write_bytes(save(values))


if __name__ == "__main__":
    main()
