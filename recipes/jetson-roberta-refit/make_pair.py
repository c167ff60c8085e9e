"""Make the checkpoint and the two adapters of this recipe: random, seeded, about a megabyte.

Usage: python recipes/jetson-roberta-refit/make_pair.py build/roberta-pair
"""

from __future__ import annotations

import sys
from pathlib import Path

import peft
import torch
import transformers

SEED = 0
STRENGTH = 0.1


def randomise(module: torch.nn.Module, strength: float, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)


def make_base(folder: Path) -> None:
    config = transformers.RobertaConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=130, type_vocab_size=1, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(SEED)
    model = transformers.RobertaForSequenceClassification(config)
    randomise(model, 0.02, seed=SEED)
    model.save_pretrained(folder)


def make_adapter(base: Path, folder: Path, *, seed: int) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"]),
    )
    randomise(wrapped, STRENGTH, seed=seed)
    wrapped.save_pretrained(str(folder))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    output = Path(sys.argv[1])
    transformers.logging.set_verbosity_error()
    make_base(output / "base")
    for seed, name in enumerate(("first", "second"), 1):
        make_adapter(output / "base", output / name, seed=seed)
    print(f"{output}: base, first, second")


if __name__ == "__main__":
    main()
