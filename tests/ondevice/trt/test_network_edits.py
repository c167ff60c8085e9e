"""Changes of a network between parser and builder, on layers that record what is done to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from lora_export.ondevice.trt.network_edits import decompose_attention, dequantize_constants


class Boundary:
    """A layer before or behind an attention."""

    attention: Any = None


class Layer:
    """A layer as a network returns it."""

    def __init__(self, kind: str) -> None:
        self.type = SimpleNamespace(name=kind)
        self.attention = SimpleNamespace(decomposable=False)


class _Network:
    def __init__(self, kinds: list[str]) -> None:
        self.layers = [Layer(kind) for kind in kinds]
        self.num_layers = len(kinds)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


def _log(module: Any) -> Any:
    return SimpleNamespace(module=module)


def test_every_attention_may_be_decomposed() -> None:
    kinds = ["CAST", "ATTENTION_INPUT", "ATTENTION_OUTPUT", "SCATTER"]
    network: Any = _Network(kinds)
    decompose_attention(network, _log(SimpleNamespace(IAttentionBoundaryLayer=Boundary)))
    assert [each.attention.decomposable for each in network.layers] == [False, True, True, False]
    assert [type(each) is Boundary for each in network.layers] == [False, True, True, False]


def test_a_version_without_attentions_has_none_to_change() -> None:
    network: Any = _Network(["ATTENTION_INPUT"])
    decompose_attention(network, _log(SimpleNamespace()))
    assert not network.layers[0].attention.decomposable


class _Gathers:
    """A network of Gathers, by the dtype of what they look up."""

    def __init__(self, *dtypes: str) -> None:
        self.layers = [_Gather(dtype) for dtype in dtypes]
        self.num_layers = len(dtypes)
        self.made: list[Any] = []

    def get_layer(self, index: int) -> Any:
        return self.layers[index]

    def add_constant(self, shape: tuple[int, ...], weights: Any) -> Any:
        return _with_output(("constant", shape, weights))

    def add_dequantize(self, value: Any, scale: Any, dtype: str) -> Any:
        return _with_output(("dequantized", value, scale, dtype))


class _Gather:
    def __init__(self, dtype: str) -> None:
        self.type = "GATHER"
        self.inputs = [SimpleNamespace(dtype=dtype), SimpleNamespace(dtype="int64")]

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def set_input(self, index: int, value: Any) -> None:
        self.inputs[index] = value


def _with_output(value: Any) -> Any:
    return SimpleNamespace(get_output=lambda _: value)


def test_integers_that_are_looked_up_are_dequantized_by_one_first() -> None:
    module = SimpleNamespace(
        LayerType=SimpleNamespace(GATHER="GATHER"),
        DataType=SimpleNamespace(INT8="int8", FLOAT="float32"),
        Weights=np.copy,
    )
    network = _Gathers("int8", "float32")
    integers = network.layers[0].inputs[0]
    dequantize_constants(network, _log(module))  # type: ignore[arg-type]
    kind, value, (_, shape, scale), dtype = network.layers[0].inputs[0]
    assert (kind, value, shape, scale, dtype) == ("dequantized", integers, (), 1, "float32")
    assert network.layers[1].inputs[0].dtype == "float32"
