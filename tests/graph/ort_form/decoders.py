"""Small decoders of several families in ONNX Runtime's form, with their torch twins' weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
import transformers

from lora_export.graph.graph_export import export_graph
from lora_export.graph.ort_form.ort_template import TRACED_OPSET, Applied, ort_template
from lora_export.graph.spec import tasks
from lora_export.graph.spec.placement import place
from lora_export.graph.spec.signature import read_signature
from lora_export.graph.spec.template import Placement
from lora_export.weights.positions import count_positions
from tests.graph.traced import twin

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["CONFIGS", "OrtDecoderGraph", "traced"]

_SMALL: Final[dict[str, Any]] = {
    "vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_hidden_layers": 3, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_BROAD: Final = {**_SMALL, "hidden_size": 128}
_GROUPED: Final = {**_SMALL, "num_key_value_heads": 2}
_WIDE: Final = {**_GROUPED, "head_dim": 16}
_MIXED: Final = ["sliding_attention", "full_attention", "sliding_attention"]
_GPT: Final = {
    "vocab_size": 60, "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: Final[dict[str, Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_WIDE, sliding_window=4, layer_types=_MIXED),
    "gemma2": lambda: transformers.Gemma2Config(
        **_WIDE, sliding_window=4, layer_types=_MIXED, attn_logit_softcapping=0.5
    ),
    "phi3": lambda: transformers.Phi3Config(**_GROUPED),
    "gpt2": lambda: transformers.GPT2Config(**_GPT),
    "stablelm": lambda: transformers.StableLmConfig(**_GROUPED),
    "mistral": lambda: transformers.MistralConfig(**_WIDE, sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(**_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_WIDE),
    "smollm3": lambda: transformers.SmolLM3Config(**_GROUPED),
    "gemma": lambda: transformers.GemmaConfig(**_WIDE),
    "phi": lambda: transformers.PhiConfig(**_GROUPED, partial_rotary_factor=0.5),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_BROAD, rotary_pct=0.5),
    "olmo2": lambda: transformers.Olmo2Config(**_GROUPED),
}
"""A config of each family, by model type; the first ones are the most unlike each other."""


def traced(config: Any) -> GraphTemplate:
    """Return the graph of a config, as it is before it gets the form."""
    task = tasks.by_name("text-generation")
    return export_graph(
        config.to_dict(), task, dtype="float32", opset=TRACED_OPSET, labels_count=None
    )


class OrtDecoderGraph:
    """A decoder of `CONFIGS` in the form, in ONNX Runtime.

    Attributes:
        applied: What of it has operators of ONNX Runtime.
        model: The torch twin.
        signature: The interface.
        counts: How many nodes of each operator there are.
    """

    applied: Applied

    def __init__(self, kind: str, folder: Path) -> None:
        config = CONFIGS[kind]()
        self.config = config.to_dict()
        template, self.applied = ort_template(traced(config), count_positions(self.config))
        self.model = twin(config)
        state = self.model.state_dict()
        placements = {}
        with (folder / "weights.raw").open("wb") as stream:
            for each in template.parameters:
                value = state[each.name].numpy()
                raw = np.ascontiguousarray(value.T if each.transposed else value).tobytes()
                placements[each.name] = Placement("weights.raw", stream.tell(), len(raw))
                stream.write(raw)
        self.path = folder / "graph.onnx"
        self.path.write_bytes(place(template.onnx_bytes, placements))
        graph = onnx.load_model_from_string(template.onnx_bytes)
        self.signature = read_signature(graph)
        kinds = [node.op_type for node in graph.graph.node]
        self.counts = {each: kinds.count(each) for each in kinds}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        self.session = onnxruntime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        given = {each.name: feeds[each.name] for each in self.session.get_inputs()}
        names = [each.name for each in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, given), strict=True))
