"""A model traced from a small config, with the weights of its torch twin, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from lora_export.core.targets import DEFAULT_TARGET, TARGETS
from lora_export.graph.optimize.fold import fold
from lora_export.graph.spec import tasks
from lora_export.graph.spec.signature import Choices
from lora_export.graph.trace.trace import trace

if TYPE_CHECKING:
    from lora_export.graph.trace.encoder_decoder import Component

__all__ = ["Graph", "twin"]

OPSET = TARGETS[DEFAULT_TARGET].opset


class Graph:
    """A graph in ONNX Runtime."""

    def __init__(
        self,
        config: Any,
        model: Any,
        *,
        task: str = "text-generation",
        opset: int = OPSET,
        component: Component | None = None,
        **choices: Any,
    ) -> None:
        self.task = tasks.by_name(task)
        traced = trace(
            config.to_dict(), self.task, "float32", opset,
            choices=Choices(**choices), component=component,
        )  # fmt: skip
        self.signature = traced.signature
        state = model.state_dict()
        for parameter in fold(traced.model, traced.parameters, traced.signature):
            value = state[parameter.name].numpy()
            value = np.ascontiguousarray(value.T if parameter.transposed else value)
            initializer = traced.model.graph.initializers[parameter.name]
            initializer.const_value = ir.Tensor(value, name=parameter.name)
        self.types = [node.op_type for node in traced.model.graph]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            ir.to_proto(traced.model).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        values = self.session.run(None, dict(feeds))
        return dict(zip(self.signature.output_names, values, strict=True))


def twin(config: Any, auto_class: str = "AutoModelForCausalLM") -> Any:
    """Return a model in torch: eager attention, every parameter random."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().eval()
