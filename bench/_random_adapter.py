"""Make a PEFT adapter of rank 8 with seeded random values (B too) for a checkpoint, by PEFT.

Usage: python _random_adapter.py BASE AUTO_CLASS TASK_TYPE TARGET,TARGET FOLDER
"""

from __future__ import annotations

import sys

import peft
import torch
import transformers

_RANK = 8
_STD = 0.02


def main() -> None:
    base, auto_class, task_type, targets, folder = sys.argv[1:]
    model = getattr(transformers, auto_class).from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        task_type=task_type,
        r=_RANK,
        lora_alpha=2 * _RANK,
        target_modules=targets.split(","),
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * _STD)
    wrapped.save_pretrained(folder)


if __name__ == "__main__":
    main()
