"""Adapter layers as nodes of a GPT-2 graph: what the LoRA paper compares itself with.

    Houlsby et al. 2019 (AdapterH)   y + up(relu(down(y))), y the output of attention, and again
                                     of the MLP, before their residual connections
    Lin et al. 2020 (AdapterL), like Pfeiffer et al. 2021
                                     y + up(relu(down(norm(y)))), y the output of each layer

Both have biases and the same number of parameters. The weights are in the graph's own file; all
others are read from the base's. `as_torch` puts the same layers, by other code, into the model of
transformers, to compare with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

STD: Final = 0.02
EPSILON: Final = 1e-5
PARAMETERS: Final = 11_000_000


@dataclass(frozen=True)
class Kind:
    """Places of adapter layers.

    Attributes:
        places: For each, the bias whose sum is adapted; of a layer's output, that sum's residual.
        norm: Whether the adapter normalises its input, and adapts what the residual returns.
    """

    places: tuple[str, ...]
    norm: bool

    def width(self, hidden: int, layers: int) -> int:
        """Return the bottleneck that comes closest to the paper's 11 M parameters."""
        count = layers * len(self.places)
        return max(1, round((PARAMETERS / count - hidden) / (2 * hidden + 1)))


KINDS: Final = {
    "houlsby": Kind(("attn.c_proj", "mlp.c_proj"), norm=False),
    "pfeiffer": Kind(("mlp.c_proj",), norm=True),
}


def values(kind: Kind, layer: int, place: str, hidden: int, width: int) -> dict[str, Any]:
    """Return the seeded weights of one adapter layer."""
    random = np.random.default_rng([layer, *place.encode()])

    def drawn(*shape: int) -> Any:
        return (STD * random.standard_normal(shape)).astype(np.float32)

    found = {
        "down": drawn(hidden, width), "down_bias": drawn(width),
        "up": drawn(width, hidden), "up_bias": drawn(hidden),
    }  # fmt: skip
    if kind.norm:
        found |= {"norm": 1 + drawn(hidden), "norm_bias": drawn(hidden)}
    return found


def insert(base: Path, output: Path, kind: Kind) -> int:
    """Write the graph `base` with adapter layers; return how many parameters they have."""
    model = onnx.load(str(base), load_external_data=False)
    graph = model.graph
    bias = re.compile(r"transformer\.h\.(\d+)\.(attn\.c_proj|mlp\.c_proj)\.bias")
    hidden = next(i.dims[0] for i in graph.initializer if bias.fullmatch(i.name))
    layers = sum(i.name.endswith("attn.c_proj.bias") for i in graph.initializer)
    width, parameters = kind.width(hidden, layers), 0
    nodes = list(graph.node)
    for node in list(nodes):
        found = next((m for name in node.input if (m := bias.fullmatch(name))), None)
        if found is None or found[2] not in kind.places:
            continue
        adapted = node
        if kind.norm:  # the residual sum behind it
            (adapted,) = [each for each in nodes if node.output[0] in each.input]
        named = {
            name: numpy_helper.from_array(each, f"adapter.{found[1]}.{found[2]}.{name}")
            for name, each in values(kind, int(found[1]), found[2], hidden, width).items()
        }
        graph.initializer.extend(named.values())
        parameters += sum(int(np.prod(each.dims)) for each in named.values())
        _insert_one(nodes, adapted, {name: each.name for name, each in named.items()})
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(output))
    return parameters


def _insert_one(nodes: list[Any], adapted: Any, names: dict[str, str]) -> None:
    """Put an adapter layer behind a node; what read the node reads the layer's output."""
    source = adapted.output[0]
    prefix = names["down"].removesuffix(".down")
    out = f"{prefix}.output"
    for node in nodes:
        for at, name in enumerate(node.input):
            if name == source:
                node.input[at] = out
    made, value = [], source
    if "norm" in names:
        made.append(
            helper.make_node("LayerNormalization", [value, names["norm"], names["norm_bias"]],
                             [f"{prefix}.normed"], epsilon=EPSILON)
        )  # fmt: skip
        value = f"{prefix}.normed"
    for op, inputs, result in (
        ("MatMul", [value, names["down"]], "a"),
        ("Add", [f"{prefix}.a", names["down_bias"]], "b"),
        ("Relu", [f"{prefix}.b"], "c"),
        ("MatMul", [f"{prefix}.c", names["up"]], "d"),
        ("Add", [f"{prefix}.d", names["up_bias"]], "e"),
        ("Add", [source, f"{prefix}.e"], "output"),
    ):
        made.append(helper.make_node(op, inputs, [f"{prefix}.{result}"]))
    at = nodes.index(adapted)
    nodes[at + 1 : at + 1] = made


def as_torch(model: Any, kind: Kind) -> Any:
    """Add the same layers to a GPT-2 of transformers, by hooks."""
    import torch

    config = model.config
    width = kind.width(config.n_embd, config.n_layer)
    for index, block in enumerate(model.transformer.h):
        for place in kind.places:
            numbers = values(kind, index, place, config.n_embd, width)
            held = {name: torch.from_numpy(each) for name, each in numbers.items()}
            module = block if kind.norm else block.get_submodule(place)
            module.register_forward_hook(_hook(held))
    return model


def _hook(held: dict[str, Any]) -> Any:
    import torch.nn.functional as F  # noqa: N812  (its customary name)

    def adapt(_module: Any, _inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        state = first
        if "norm" in held:
            state = F.layer_norm(state, state.shape[-1:], held["norm"], held["norm_bias"], EPSILON)
        state = F.relu(state @ held["down"] + held["down_bias"]) @ held["up"] + held["up_bias"]
        adapted = first + state
        return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

    return adapt
