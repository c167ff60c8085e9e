"""Adapters trained by PEFT: wrapped, every trained tensor moved, saved."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import peft
import torch
from safetensors.torch import load_file

from tools.merge_fuzz.feeds import compared
from tools.merge_fuzz.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    FeedMaker = Callable[[Any], Mapping[str, Any]]

__all__ = ["AdapterSpec", "scale_layers", "train"]

_STRENGTH: Final = 0.15


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter.

    Attributes:
        settings: The arguments of `peft.LoraConfig`.
        dtype: What its tensors are stored in.
        seed: Seeds what training left.
        grown: How many tokens training added to the vocabulary.
        save_embeddings: PEFT's ``save_embedding_layers``.
        converted: Whether PiSSA or OLoRA is saved as a plain adapter of the original base.
    """

    settings: Mapping[str, Any]
    dtype: str = "float32"
    seed: int = 0
    grown: int = 0
    save_embeddings: bool | str = "auto"
    converted: bool = False


def train(model: Any, spec: AdapterSpec, folder: Path, base: Path, feeds: FeedMaker) -> Any:
    """Train an adapter for a copy of `model` at random and save it in `folder`.

    The tensors have values that the adapter's dtype holds, so that the model that is returned, in
    float32 and in evaluation mode, computes exactly what its file says.

    Args:
        model: The base.
        spec: The adapter.
        folder: Where it goes.
        base: What it names as its base.
        feeds: Makes inputs for a model: what they do not reach gets no gradient, and so is left as
            PEFT made it.

    Raises:
        Exception: Whatever PEFT raises for settings that do not go together.
    """
    torch.manual_seed(spec.seed)
    model = copy.deepcopy(model)
    with quiet():
        if spec.grown:
            size = model.get_input_embeddings().weight.shape[0]
            model.resize_token_embeddings(size + spec.grown)
        config = peft.LoraConfig(**copy.deepcopy(dict(spec.settings)))
        wrapped = peft.get_peft_model(model, config).eval()
        _require_order(wrapped.peft_config["default"])
        wrapped.peft_config["default"].base_model_name_or_path = str(base)
        more = _initial_copy(wrapped, folder / "initial") if spec.converted else {}
        _move(wrapped, getattr(torch, spec.dtype), feeds)
        wrapped.save_pretrained(str(folder), save_embedding_layers=spec.save_embeddings, **more)
        if spec.converted:
            _require_converted(wrapped, folder)
        if spec.grown:
            _require_rows(folder, size + spec.grown)
        _round_saved(wrapped, folder, getattr(torch, spec.dtype))
    return wrapped


def scale_layers(wrapped: Any, factor: float) -> None:
    """Multiply the scale of every LoRA layer of PEFT's, in place."""
    for module in wrapped.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling = {name: value * factor for name, value in module.scaling.items()}


def edit_config(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of ``adapter_config.json``."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1))


def _require_order(config: peft.LoraConfig) -> None:
    """Require patterns in the order in which they are saved: PEFT sorts them, and the first counts.

    It adds some of its own to the user's for experts that transformers stacks; an adapter that is
    loaded from its file may then have other scales than the one that was trained.

    Raises:
        ValueError: They are in another order.
    """
    for patterns in (config.rank_pattern, config.alpha_pattern):
        if list(patterns) != sorted(patterns):
            msg = "PEFT saves these patterns in another order than it trained with"
            raise ValueError(msg)


def _require_rows(folder: Path, rows: int) -> None:
    """Require that PEFT saved the grown embedding; it does not find that of every model (mT5's).

    Raises:
        ValueError: The file has no tensor of so many rows.
    """
    saved = load_file(folder / "adapter_model.safetensors")
    if not any(tensor.shape[0] == rows for tensor in saved.values() if tensor.ndim):
        msg = "PEFT saved no embedding of the grown vocabulary"
        raise ValueError(msg)


def _round_saved(wrapped: Any, folder: Path, dtype: torch.dtype) -> None:
    """Round the base's own embeddings where PEFT saved them with the adapter, and so loads them."""
    parameters = dict(wrapped.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in load_file(folder / "adapter_model.safetensors"):
            if name in parameters and ".lora_" not in name:
                parameters[name].copy_(parameters[name].to(dtype).float())


def _initial_copy(wrapped: Any, folder: Path) -> dict[str, Any]:
    """Save the adapter before its training, as PEFT's documentation of PiSSA does."""
    config = wrapped.peft_config["default"]
    kind, config.init_lora_weights = config.init_lora_weights, True
    wrapped.save_pretrained(str(folder))
    config.init_lora_weights = kind
    return {"path_initial_model_for_weight_conversion": str(folder)}


def _require_converted(wrapped: Any, folder: Path) -> None:
    """Require that PEFT's conversion kept everything: it keeps the factors of matrices alone."""
    trained = sum(parameter.requires_grad for parameter in wrapped.parameters())
    if trained != len(load_file(folder / "adapter_model.safetensors")):
        msg = "PEFT's conversion drops what is not a factor of a matrix"
        raise ValueError(msg)


def _move(wrapped: Any, dtype: torch.dtype, feeds: FeedMaker) -> None:
    """Give every parameter that training reaches another value, one that `dtype` holds."""
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    initial = {name: value.detach().clone() for name, value in trained.items()}
    with torch.no_grad():
        for name, value in trained.items():
            noise = torch.randn(value.shape) * _STRENGTH
            moved = value * (1 + 2 * noise) if "magnitude" in name else value + noise
            value.copy_(moved.to(dtype).float())
    inner = wrapped.get_base_model()
    outputs = compared(inner(**feeds(inner)))
    total = torch.stack([value.float().abs().sum() for value in outputs]).sum()
    gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
        total, list(trained.values()), allow_unused=True
    )
    reached = {name for name, each in zip(trained, gradients, strict=True) if each is not None}
    with torch.no_grad():
        for name, value in trained.items():
            if name not in reached:
                second = "lora_B" in name or "lora_embedding_B" in name
                unused = torch.zeros_like(value) if second else initial[name]
                value.copy_(unused.to(dtype).float())
