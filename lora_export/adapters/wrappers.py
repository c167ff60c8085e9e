"""The names that wrappers around a model leave in its tensors' names, as a table.

A training program wraps the model before or after PEFT does, and saves what ``state_dict`` gives:

    module.base_model.model.model.layers.0._orig_mod.self_attn.q_proj.lora_A.default.weight

`unwrap` removes what no model's own module is called. A component called ``module`` may be a
model's own: it is removed where PEFT's prefix follows it, and anywhere else only once the base is
known to have no such name (`plainer_names`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "PEFT_PREFIX",
    "TRAINING_ONLY",
    "WRAPPERS",
    "plainer_names",
    "refuse_training_only",
    "unwrap",
]

WRAPPERS: Final[dict[str, str]] = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_fpw_module": "FullyShardedDataParallel (fairscale)",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning's strategies",
    "_module": "Opacus",
}
"""Components that belong to no model, and what leaves them; removed wherever they stand."""

PEFT_PREFIX: Final = "base_model.model."
"""The prefix that PEFT puts before each name."""

_PEFT: Final = ("base_model", "model")
_OUTER: Final[dict[str, str]] = {
    "pretrained_model": "TRL's model with a value head",
    "module": "DistributedDataParallel, DataParallel or DeepSpeed",
}
"""Components that stand before PEFT's prefix."""

_MODULE: Final = "module"

TRAINING_ONLY: Final[dict[str, str]] = {
    "v_head": "the value head of TRL's AutoModelForCausalLMWithValueHead, which only PPO reads",
    "value_head": "a value head, which only reinforcement learning reads",
}
"""Modules beside the model that training needs and the model's outputs do not."""


def unwrap(key: str) -> str:
    """Return the name of an adapter's tensor without wrappers and without PEFT's prefix.

    Args:
        key: The name in the adapter's file.

    >>> unwrap("module.base_model.model._orig_mod.model.layers.0.q_proj.lora_A.weight")
    'model.layers.0.q_proj.lora_A.weight'
    >>> unwrap("base_model.model.base_model.model.model.layers.0.q_proj.lora_A.weight")
    'model.layers.0.q_proj.lora_A.weight'
    >>> unwrap("base_model.model.module.layers.0.q_proj.lora_A.weight")
    'module.layers.0.q_proj.lora_A.weight'
    """
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    while True:
        outer = 0
        while outer < len(parts) and parts[outer] in _OUTER:
            outer += 1
        if tuple(parts[outer : outer + 2]) == _PEFT:
            parts = parts[outer + 2 :]
        elif parts[0] == "pretrained_model" and len(parts) > 1:
            parts = parts[1:]
        else:
            return ".".join(parts)


def plainer_names(name: str) -> tuple[str, ...]:
    """Return the names that `name` may stand for if wrappers left theirs in it, nearest first.

    >>> plainer_names("module.layers.0.module.q_proj.weight")
    ('layers.0.module.q_proj.weight', 'layers.0.q_proj.weight')
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    found = [".".join(parts)]
    if parts[0] == _MODULE:
        found.append(".".join(parts[1:]))
    found.append(".".join(part for part in parts if part != _MODULE))
    return tuple(each for each in dict.fromkeys(found) if each and each != name)


def refuse_training_only(parameters: Iterable[str], source: str) -> None:
    """Refuse parameters of modules that only training reads.

    Args:
        parameters: The paths of the parameters that an adapter carries whole and keeps.
        source: The adapter, for messages.

    Raises:
        UnsupportedError: There is such a parameter.
    """
    for parameter in parameters:
        top = parameter.partition(".")[0]
        if top in TRAINING_ONLY:
            msg = f"adapter {source!r} carries {parameter!r}: {TRAINING_ONLY[top]}"
            raise UnsupportedError(
                msg, hint=f"The merged model has no use for it. Leave it out: --drop '{top}.*'"
            )
