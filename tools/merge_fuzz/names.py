"""Forms of an adapter's file: wrappers around its names, its dtype and format."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["WRAPPERS", "rewrite"]

_PREFIX: Final = "base_model.model."


def _insert_after_prefix(text: str) -> Callable[[str], str]:
    return lambda key: key.replace(_PREFIX, _PREFIX + text, 1)


def _before_layers(text: str) -> Callable[[str], str]:
    return lambda key: re.sub(r"\.(layers?|h|blocks?)\.(\d+)\.", rf".\1.\2.{text}", key, count=1)


def _drop_model(key: str) -> str:
    return re.sub(rf"^{re.escape(_PREFIX)}model\.", _PREFIX, key)


def _named(key: str) -> str:
    key = re.sub(r"\.(lora_[AB])\.(weight|bias)$", r".\1.default.\2", key)
    key = re.sub(r"\.lora_magnitude_vector$", ".lora_magnitude_vector.default.weight", key)
    return re.sub(r"\.(lora_embedding_[AB]|trainable_tokens_delta)$", r".\1.default", key)


def _fsdp(key: str) -> str:
    return _before_layers("_fsdp_wrapped_module.")(
        _insert_after_prefix("_fsdp_wrapped_module.")(key)
    )


WRAPPERS: Final[Mapping[str, Callable[[str], str]]] = {
    "_orig_mod inside": _insert_after_prefix("_orig_mod."),
    "_orig_mod outside": lambda key: "_orig_mod." + key,
    "module inside": _insert_after_prefix("module."),
    "module outside": lambda key: "module." + key,
    "FSDP": _fsdp,
    "checkpointing": _before_layers("_checkpoint_wrapped_module."),
    "PEFT twice": lambda key: _PREFIX + key,
    "adapter name": _named,
    "no PEFT prefix": lambda key: key.removeprefix(_PREFIX),
    "model. missing": _drop_model,
    "model. extra": _insert_after_prefix("model."),
    "pretrained_model": _insert_after_prefix("pretrained_model."),
}
"""Parts that frameworks add to the names that PEFT writes, or take out of them."""


def rewrite(folder: Path, *, wrapper: str | None, dtype: str, as_bin: bool) -> None:
    """Write the adapter in `folder` again, as another framework leaves it."""
    path = folder / "adapter_model.safetensors"
    rename = WRAPPERS[wrapper] if wrapper else str
    kept = getattr(torch, dtype)
    tensors = {
        rename(name): (value.to(kept) if value.is_floating_point() else value).contiguous()
        for name, value in load_file(path).items()
    }
    if wrapper == "pretrained_model":  # TRL's value head beside the model
        tensors["v_head.summary.weight"] = torch.ones(1, 32)
    if as_bin:
        path.unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, path, metadata={"format": "pt"})
