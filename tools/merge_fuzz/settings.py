"""The settings of an adapter: which modules, which variants, drawn for one model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.pytorch_utils import Conv1D

from tools.merge_fuzz.chance import chance

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from tools.merge_fuzz.bases import Base

__all__ = ["Inventory", "draw_settings", "inventory_of"]

_SPARE_TOKENS: Final = 5
_STACKED: Final = 3


@dataclass(frozen=True)
class Inventory:
    """The parts of a model that can be trained.

    Attributes:
        linear: Paths of its Linear and Conv1D modules.
        embedding: Paths of its embeddings.
        convolution: Paths of its convolutions.
        heads: Paths of Linear modules outside the base model.
        norms: Paths of its norms.
        containers: Paths of modules that hold others.
        stacks: Paths of parameters that stack the matrices of experts.
        missing: The modules that the checkpoint lacks, which the adapter must bring.
        input_embedding: The path of the embedding of the input tokens.
    """

    linear: tuple[str, ...]
    embedding: tuple[str, ...]
    convolution: tuple[str, ...]
    heads: tuple[str, ...]
    norms: tuple[str, ...]
    containers: tuple[str, ...]
    stacks: tuple[str, ...]
    missing: tuple[str, ...] = ()
    input_embedding: str | None = None
    tokens: tuple[int, ...] = field(default=(), repr=False)


def inventory_of(base: Base, tokens: Iterable[int]) -> Inventory:
    """Return what can be trained of a base; `tokens` are those that its inputs hold."""
    model = base.model
    inner = f"{model.base_model_prefix}."
    modules = {path: module for path, module in model.named_modules() if path}
    embedding = _embedding_of(model)
    linear = [path for path, each in modules.items() if isinstance(each, torch.nn.Linear | Conv1D)]
    stacks = [name for name, value in model.named_parameters() if value.ndim == _STACKED]
    return Inventory(
        linear=tuple(linear),
        embedding=_of(modules, torch.nn.Embedding),
        convolution=_of(modules, torch.nn.Conv1d | torch.nn.Conv2d),
        heads=tuple(path for path in linear if not path.startswith(inner)),
        norms=tuple(path for path, each in modules.items() if "Norm" in type(each).__name__),
        containers=tuple(path for path, each in modules.items() if list(each.children())),
        stacks=tuple(name for name in stacks if "experts" in name),
        missing=tuple(sorted({_top(name, inner) for name in base.missing})),
        input_embedding=next((p for p, each in modules.items() if each is embedding), None),
        tokens=tuple(tokens),
    )


def draw_settings(random: Random, inventory: Inventory, task_type: str | None) -> dict[str, Any]:
    """Return the keyword arguments of a `peft.LoraConfig`."""
    rank = random.choice([1, 2, 3, 4, 8])
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": random.choice([1, 2, 4, 8, 16, 0.5]),
        "task_type": task_type if chance(random, 0.7) else None,
        **_targets(random, inventory),
    }
    drawn = (
        (0.20, _scales),
        (0.15, _biases),
        (0.12, lambda *_: {"use_dora": True}),
        (0.08, lambda *_: {"lora_bias": True}),
        (0.15, lambda *_: {"use_rslora": True}),
        (0.15, _tokens),
        (0.25, _saved),
        (0.12, lambda *_: {"fan_in_fan_out": random.choice([True, False])}),
        (0.15, lambda *_: {"init_lora_weights": _initial(random)}),
        (0.10, lambda *_: {"ensure_weight_tying": True}),
        (0.50 if inventory.stacks else 0.0, _parameters),
    )
    for share, make in drawn:
        if chance(random, share):
            settings |= make(random, inventory)
    if inventory.missing:
        saved = [*(settings.get("modules_to_save") or []), *inventory.missing]
        settings["modules_to_save"] = list(dict.fromkeys(saved))
    return settings


def _targets(random: Random, inventory: Inventory) -> dict[str, Any]:
    pool = list(inventory.linear)
    if chance(random, 0.2):
        pool += 4 * list(inventory.embedding)
    if chance(random, 0.2):
        pool += 4 * list(inventory.convolution)
    if chance(random, 0.2):
        pool += 4 * list(inventory.heads)
    pool = pool or [*inventory.convolution, *inventory.embedding]
    chosen = random.sample(pool, min(len(pool), random.randint(1, 4)))
    kind = random.choice(["names"] * 6 + ["paths", "paths", "regex", "all-linear"])
    names = sorted({path.rpartition(".")[2] for path in chosen})
    if kind == "all-linear":
        found: dict[str, Any] = {"target_modules": "all-linear"}
    elif kind == "paths":
        found = {"target_modules": sorted(set(chosen))}
    elif kind == "regex":
        found = {"target_modules": rf"(.*\.)?({'|'.join(map(re.escape, names))})"}
    else:
        found = {"target_modules": names}
    if chance(random, 0.1):
        found["exclude_modules"] = [random.choice([*names, random.choice(pool)])]
    if kind == "names" and chance(random, 0.1):
        found["layers_to_transform"] = random.choice([0, 1, [0], [1], [0, 1]])
        if chance(random, 0.3):
            found["layers_pattern"] = random.choice(["layers", "layer", "h"])
    return found


def _scales(random: Random, inventory: Inventory) -> dict[str, Any]:
    keys = [path.rpartition(".")[2] for path in inventory.linear] or ["none"]
    keys += [random.choice(inventory.linear or ("none",)), r".*\.1\..*", r"^.*\.0\..*"]
    return {
        "rank_pattern": {random.choice(keys): random.choice([1, 2, 5, 6])},
        "alpha_pattern": {random.choice(keys): random.choice([1, 3, 7, 32])},
    }


def _biases(random: Random, _: Inventory) -> dict[str, Any]:
    return {"bias": random.choice(["all", "lora_only"])}


def _tokens(random: Random, inventory: Inventory) -> dict[str, Any]:
    if inventory.input_embedding is None:
        return {}
    count = min(len(inventory.tokens), random.randint(1, _SPARE_TOKENS))
    indices = sorted(random.sample(inventory.tokens, count))
    if chance(random, 0.4):
        return {"trainable_token_indices": indices}
    return {"trainable_token_indices": {inventory.input_embedding.rpartition(".")[2]: indices}}


def _saved(random: Random, inventory: Inventory) -> dict[str, Any]:
    pool = [*inventory.heads] * 3 + [*inventory.norms, *inventory.embedding, *inventory.linear]
    if chance(random, 0.2):
        pool = list(inventory.containers)
    if not pool:
        return {}
    chosen = [random.choice(pool) for _ in range(random.choice([1, 1, 2]))]
    if chance(random, 0.6):
        chosen = [path.rpartition(".")[2] for path in chosen]
    chosen = [name for name in chosen if not name.isdigit()]
    return {"modules_to_save": list(dict.fromkeys(chosen))} if chosen else {}


def _initial(random: Random) -> Any:
    residual = random.choice(["pissa", "pissa_niter_2", "olora"])
    return random.choice([True, False, "gaussian", "orthogonal", residual])


def _parameters(random: Random, inventory: Inventory) -> dict[str, Any]:
    names = sorted({path.partition(".mlp.")[2] or path for path in inventory.stacks})
    chosen = random.sample(names, random.randint(1, len(names)))
    return {"target_parameters": chosen}


def _of(modules: dict[str, Any], kind: Any) -> tuple[str, ...]:
    return tuple(path for path, each in modules.items() if isinstance(each, kind))


def _embedding_of(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def _top(name: str, inner: str) -> str:
    """Return the module that brings a missing parameter: the outermost one."""
    path = name.rpartition(".")[0]
    if name.startswith(inner):
        return path
    return path.partition(".")[0] if path else name
