"""The architectures of the export, each with a graph, its torch twin, and weights put in by hand.

Nothing of the writer takes part: the weight file is laid out here, from torch's own state dict.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
import torch

from lora_export.graph.graph_export import export_graph
from lora_export.graph.spec import tasks
from lora_export.graph.spec.placement import place
from lora_export.graph.spec.template import GraphTemplate, Placement
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.helpers.models import TinyModels

__all__ = [
    "DECODERS",
    "FAMILIES",
    "LABELS",
    "OPSET",
    "TIED",
    "Family",
    "initializers_of",
    "load_config",
    "make_family",
    "make_inputs",
    "template_of",
]

OPSET: Final = 20
LABELS: Final = 3

FAMILIES: Final[tuple[tuple[str, str], ...]] = (
    ("bert", "text-classification"),
    ("bert", "token-classification"),
    ("bert", "fill-mask"),
    ("bert", "feature-extraction"),
    ("roberta", "text-classification"),
    ("distilbert", "text-classification"),
    ("deberta-v2", "text-classification"),
    ("gpt2", "text-generation"),
    ("gpt2", "text-classification"),
    ("llama", "text-generation"),
    ("llama-tied", "text-generation"),
)
DECODERS: Final = tuple(family for family in FAMILIES if family[1] == "text-generation")
TIED: Final[tuple[tuple[str, str], ...]] = (
    ("bert", "fill-mask"),
    ("gpt2", "text-generation"),
    ("llama-tied", "text-generation"),
)


@dataclass(frozen=True)
class Family:
    """One architecture, exported."""

    kind: str
    task: tasks.Task
    template: GraphTemplate
    model: Any
    graph: onnx.ModelProto
    session: Any

    def torch_output(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Run the torch twin."""
        with torch.inference_mode():
            output = self.model(
                **{
                    name: torch.from_numpy(v)
                    for name, v in feeds.items()
                    if not name.startswith("past_key_values.")
                }
            )
        result: np.ndarray[Any, Any] = getattr(output, self.task.output).numpy()
        return result

    def graph_output(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Run the graph in ONNX Runtime."""
        feeds = dict(feeds)
        for node in self.session.get_inputs():  # a past of length 0
            if node.name.startswith("past_key_values."):
                _, heads, _, width = node.shape
                batch = len(feeds["input_ids"])
                feeds[node.name] = np.zeros((batch, heads, 0, width), np.float32)
        return np.asarray(self.session.run([self.task.output], feeds)[0])


def load_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config, as the pipeline reads it."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def template_of(
    config: Mapping[str, Any], task_name: str, *, dtype: str = "float32", **settings: Any
) -> GraphTemplate:
    """Export a graph for `task_name`; with labels where the task has them."""
    task = tasks.by_name(task_name)
    labels = LABELS if task.label_parameters else None
    return export_graph(config, task, dtype=dtype, opset=OPSET, labels_count=labels, **settings)


def make_family(tiny: TinyModels, kind: str, task_name: str, folder: Path) -> Family:
    """Export `kind` for `task_name` and give the graph the weights of its torch twin."""
    checkpoint = tiny.base(kind, task_name)
    template = template_of(load_config(checkpoint), task_name)
    model = load_tiny(checkpoint, task_name, dtype="float32")
    model.set_attn_implementation("eager")
    state = model.state_dict()
    placements: dict[str, Placement] = {}
    (folder / "weights").mkdir(parents=True)
    with (folder / "weights" / "all.raw").open("wb") as stream:
        for parameter in template.parameters:
            value = state[parameter.name].numpy()
            raw = np.ascontiguousarray(value.T if parameter.transposed else value).tobytes()
            placements[parameter.name] = Placement("weights/all.raw", stream.tell(), len(raw))
            stream.write(raw)
    path = folder / "graph.onnx"
    path.write_bytes(place(template.onnx_bytes, placements))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load_model_from_string(template.onnx_bytes)
    return Family(kind, tasks.by_name(task_name), template, model, graph, session)


def make_inputs(
    family: Family, batch: int, length: int, *, seed: int = 0
) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return inputs with padding, and the mask of what counts.

    Row i has `length - 2 i` tokens (at least one). Encoders are padded on the right, decoders that
    take positions on the left, with positions counted from the first real token.
    """
    random = np.random.default_rng(seed)
    names = [node.name for node in family.session.get_inputs()]
    pad = int(family.model.config.pad_token_id)
    ids = random.integers(3, family.model.config.vocab_size, (batch, length))
    mask = np.ones((batch, length), np.int64)
    for row in range(batch):
        kept = max(1, length - 2 * row)
        hidden = slice(0, length - kept) if "position_ids" in names else slice(kept, length)
        mask[row, hidden] = 0
        ids[row, hidden] = pad
    made = {
        "input_ids": ids.astype(np.int64),
        "attention_mask": mask,
        "token_type_ids": random.integers(0, 2, (batch, length)).astype(np.int64),
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0).astype(np.int64),
    }
    return {name: made[name] for name in names if name in made}, mask.astype(bool)


def initializers_of(graph: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers by name."""
    return {initializer.name: initializer for initializer in graph.graph.initializer}
