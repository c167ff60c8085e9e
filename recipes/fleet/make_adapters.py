"""Make the twelve adapters of the fleet: four of each of three kinds, on all-MiniLM-L6-v2.

Run from anywhere::

    python recipes/fleet/make_adapters.py [FOLDER]

They are not trained. Every value is random with a fixed seed, B included, so that each of them
changes the outputs. The fleet shows how adapters are built, not what they are good for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import peft
import torch
import transformers

HERE: Final = Path(__file__).resolve().parent
BASE: Final = HERE.parents[1] / "models" / "all-MiniLM-L6-v2"
FOLDER: Final = HERE.parents[1] / "build" / "fleet-adapters"

KINDS: Final[dict[str, dict[str, Any]]] = {
    "qv": {"r": 8, "target_modules": ["query", "value"]},
    "dense": {
        "r": 4,
        "target_modules": r"encoder\..*\.(query|key|value|dense)",
        "use_rslora": True,
    },
    "dora": {"r": 4, "target_modules": ["query", "value"], "use_dora": True},
}
"""Settings of each kind of adapter."""

EACH: Final = 4


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for kind, settings in KINDS.items():
        for at in range(EACH):
            make(folder / f"{kind}-{at}", settings, seed=at)
    print(f"{len(KINDS) * EACH} adapters in {folder}")


def make(folder: Path, settings: dict[str, Any], seed: int) -> None:
    """Write an adapter."""
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_pretrained(BASE)
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", lora_alpha=16, **settings)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(0.0, 0.05)
    wrapped.save_pretrained(str(folder))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
