"""Small models of transformers, PEFT adapters trained on them, and their merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file, save_file

from lora_export.commands.inspect.inspect_path import inspect_pair
from lora_export.commands.merge import merge_checkpoint
from lora_export.core.adapter_spec import AdapterSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


IDS = [[5, 9, 17, 33, 64, 2], [1, 8, 3, 90, 100, 7]]
TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
ENCODER: dict[str, Any] = {
    key: value for key, value in TEXT.items() if key != "num_key_value_heads"
}
LLAVA: dict[str, Any] = {
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
    "image_token_index": 120,
}


def build(class_name: str, config_class: str, settings: dict[str, Any], folder: Path) -> Any:
    """Return a model with random parameters, saved in `folder` under the hub's names."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    return model


def train(model: Any, folder: Path, **settings: Any) -> Any:
    """Return `model` with a random adapter, saved in `folder`."""
    return train_method(model, folder, "LoraConfig", **{"r": 4, "lora_alpha": 8, **settings})


def train_method(model: Any, folder: Path, config: str, **settings: Any) -> Any:
    """Return `model` with a random adapter of any method, saved in `folder`.

    Args:
        model: The model.
        folder: Where the adapter goes.
        config: The name of PEFT's config class.
        settings: Its settings.
    """
    import peft
    import torch

    torch.manual_seed(7)
    wrapped = peft.get_peft_model(model, getattr(peft, config)(**settings))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.eval().save_pretrained(folder)
    return wrapped


def merged(base: Path, adapter: Path, out: Path, **settings: Any) -> Path:
    """Merge, after `inspect` has found that the adapter fits."""
    fit = inspect_pair(base, adapter).fit
    assert fit.fits, fit.mismatches
    spec = AdapterSpec(source=str(adapter), name="a", **settings)
    merge_checkpoint(base, [spec], out)
    return out


def outputs(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits


def relative(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


def renamed(folder: Path, rename: Callable[[str], str]) -> Path:
    """Rename the tensors of an adapter."""
    file = folder / "adapter_model.safetensors"
    save_file({rename(key): value for key, value in load_file(file).items()}, file)
    return folder
