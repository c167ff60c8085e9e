"""Undocumented APIs of transformers: every use that the project makes of one.

Read with the versions of `lora_export.core.supported_versions`; another version may need a change
here, and nowhere else.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

from transformers import conversion_mapping
from transformers import utils as transformers_utils
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.core_model_loading import PrefixChange, WeightConverter, WeightRenaming
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    causal_mask_function,
    eager_mask,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lora_export.core.torch_private import replaced

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    import torch

__all__ = [
    "ALL_MASK_ATTENTION_FUNCTIONS",
    "ROPE_INIT_FUNCTIONS",
    "BaseModelOutput",
    "DynamicCache",
    "DynamicLayer",
    "EncoderDecoderCache",
    "PrefixChange",
    "WeightConverter",
    "WeightRenaming",
    "apply_gate",
    "bidirectional_mask_function",
    "causal_mask_function",
    "conversion_rules",
    "eager_mask",
    "experts_functions",
    "falcon_model",
    "has_auto_model",
    "import_losses",
    "initialize_module",
    "keys_left_out",
]

_ASSIGNMENT: Final = "linear_sum_assignment"
_LOSSES: Final = "transformers.loss."
_FALCON: Final = "transformers.models.falcon.modeling_falcon"


def conversion_rules(model: Any) -> list[Any]:
    """Return the rules by which a checkpoint of `model` is renamed, stacked and split, in order."""
    return list(conversion_mapping.get_model_conversion_mapping(model))


def experts_functions() -> MutableMapping[str, Any] | None:
    """Return the table of functions that compute mixtures of experts, by implementation.

    None where transformers has no such table.
    """
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError:
        return None
    table: MutableMapping[str, Any] = ALL_EXPERTS_FUNCTIONS
    return table


def apply_gate(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Return what the gate of a module of experts makes of ``gate_up_proj``'s output."""
    result: torch.Tensor = module._apply_gate(x)  # noqa: SLF001
    return result


def falcon_model() -> Any:
    """Return the module of Falcon's code: ``build_alibi_tensor``, ``FalconAttention``."""
    return importlib.import_module(_FALCON)


def keys_left_out(model: Any) -> tuple[str, ...]:
    """Return the names of parameters that transformers computes and does not save."""
    return tuple(getattr(model, "_keys_to_ignore_on_save", None) or ())


def initialize_module(model: Any, module: torch.nn.Module) -> None:
    """Give the parameters of a module of `model` the values that it has without a checkpoint."""
    model._init_weights(module)  # noqa: SLF001


def has_auto_model(auto_class: Any, config: Any) -> bool:
    """Return whether an auto class has a model for the class of `config`."""
    return type(config) in auto_class._model_mapping  # noqa: SLF001


def import_losses() -> None:
    """Import the losses of training, which every model's module imports, without scipy.

    Those of object detection take one function of it, whose import is half a second; it is
    imported when they call it.
    """
    if f"{_LOSSES}loss_utils" in sys.modules or not transformers_utils.is_scipy_available():
        return
    with replaced(transformers_utils, "is_scipy_available", lambda: False):
        importlib.import_module(f"{_LOSSES}loss_utils")
    for name, module in list(sys.modules.items()):
        if name.startswith(_LOSSES) and hasattr(module, "is_scipy_available"):
            vars(module)["is_scipy_available"] = transformers_utils.is_scipy_available
            vars(module).setdefault(_ASSIGNMENT, _linear_sum_assignment)


def _linear_sum_assignment(*arguments: Any, **settings: Any) -> Any:
    return getattr(importlib.import_module("scipy.optimize"), _ASSIGNMENT)(*arguments, **settings)
