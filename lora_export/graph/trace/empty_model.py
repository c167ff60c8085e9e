"""A model built from its config: parameters without values, real buffers, ties tied.

Parameters are fake CPU tensors: they have shapes and dtypes, no storage. Buffers (rotary
frequencies, position tables that no checkpoint holds) are real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from accelerate import init_empty_weights

from lora_export.core.declarations import classes_of
from lora_export.core.errors import UnsupportedError
from lora_export.core.torch_private import FakeTensorMode, own_parameters
from lora_export.graph.spec.model_settings import plain_settings, refuse_what_is_passed_over
from lora_export.graph.trace.frequencies import choose_frequencies_in_graph
from lora_export.graph.trace.traced_pooling import add_dense_layers
from lora_export.graph.trace.transformers_private import import_losses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.spec.tasks import Task
    from lora_export.weights.sentence_head import SentenceHead

__all__ = ["build_model"]

_MESSAGE_LIMIT: Final = 300
_NO_CLASS: Final = "Unrecognized configuration class"
"""How transformers begins to say that an auto class has none for a config."""


def build_model(
    config: Mapping[str, Any],
    task: Task,
    dtype: torch.dtype,
    sentence: SentenceHead | None,
    *,
    untied: bool = False,
) -> Any:
    """Return the model that `config` describes for `task`, in eval mode.

    Args:
        config: The checkpoint's ``config.json``.
        task: The task's row; it names the class.
        dtype: The dtype of the parameters.
        sentence: Layers behind the token states, for a task that pools them.
        untied: Whether parameters that the model ties become parameters of their own.

    Raises:
        UnsupportedError: transformers cannot build the model, or ignores a setting of the config.
    """
    model_type = config.get("model_type")
    settings = plain_settings(config)
    import_losses()
    try:
        parsed = transformers.AutoConfig.for_model(**settings)
        auto_class = getattr(transformers, task.auto_class)
        with init_empty_weights(include_buffers=False):
            model = auto_class.from_config(
                parsed, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
            )
            if sentence is not None:
                add_dense_layers(model, sentence, dtype)
    except Exception as error:
        raise _not_built(str(model_type), task, error) from error
    refuse_what_is_passed_over(model, settings)
    model.tie_weights()
    model.eval()
    choose_frequencies_in_graph(model)
    _make_parameters_fake(model, untied=untied)
    return model


def _not_built(model_type: str, task: Task, error: Exception) -> UnsupportedError:
    """Return the error for a model that transformers does not know, or not for this task."""
    classes = [each.name for each in classes_of(model_type)]
    if classes and _NO_CLASS in str(error):
        msg = (
            f"{task.name} is not a task of {model_type!r}: transformers has no {task.auto_class} "
            "for it"
        )
        return UnsupportedError(
            msg,
            hint=f"It has {', '.join(classes[:3])}. To merge an adapter into the checkpoint "
            "instead: lora-export merge",
        )
    if not classes:
        return UnsupportedError(
            f"transformers {transformers.__version__} has no model type {model_type!r}",
            hint="Check model_type in config.json, or install a newer transformers.",
        )
    msg = f"transformers cannot build {model_type!r} for {task.name}: {error}"
    return UnsupportedError(
        msg.splitlines()[0][:_MESSAGE_LIMIT],
        hint=f"transformers {transformers.__version__} is installed.",
    )


def _make_parameters_fake(model: torch.nn.Module, *, untied: bool) -> None:
    """Replace every parameter by a fake CPU tensor; tied ones stay one object unless `untied`."""
    replaced: dict[int, torch.nn.Parameter] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            table = own_parameters(module)
            for name, parameter in table.items():
                if parameter is None:
                    continue
                if untied or id(parameter) not in replaced:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    replaced[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
                table[name] = replaced[id(parameter)]
