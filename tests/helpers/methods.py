"""Adapters of PEFT's methods other than LoRA, for tiny checkpoints, every tensor random."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from lora_export.graph.spec import tasks
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["edit_config", "save_method"]


def save_method(
    base: Path,
    folder: Path,
    config: str,
    *,
    task: str = "text-generation",
    strength: float = 0.1,
    **settings: Any,
) -> Path:
    """Save an adapter of a method for the checkpoint `base` into `folder`; return it.

    Args:
        base: The checkpoint.
        folder: Where it goes.
        config: The name of PEFT's config class.
        task: What it is for.
        strength: The standard deviation of what is added to each trained tensor.
        settings: Settings of the config.
    """
    import peft
    import torch

    row = tasks.by_name(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_tiny(base, task, labels_count=3, dtype="float32")
        made = getattr(peft, config)(task_type=row.peft_type, **settings)
        torch.manual_seed(1)
        wrapped = peft.get_peft_model(model, made)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad and "ranknum" not in name:
                    parameter.add_(torch.randn_like(parameter) * strength)
        wrapped.save_pretrained(str(folder))
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change settings of the adapter in `folder`."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
