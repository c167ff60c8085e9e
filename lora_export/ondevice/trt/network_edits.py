"""Changes of a parsed network, for what the builder takes in another form than the parser gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import tensorrt as trt

    from lora_export.ondevice.trt.api import Log

__all__ = ["decompose_attention", "dequantize_constants"]

_ONE: Final = np.ones((1,), np.float32)
"""A network does not copy the weights that it is given: they live as long as the module."""


def decompose_attention(network: trt.INetworkDefinition, log: Log) -> None:
    """Let attentions be computed by several kernels where no single one fits.

    An ``Attention`` node becomes an attention of the network, which the builder refuses for sizes
    and types without a kernel of their own (tried with TensorRT for RTX 1.7.1). A version without
    such layers has none to change.
    """
    boundary = getattr(log.module, "IAttentionBoundaryLayer", None)
    if boundary is None:
        return
    for index in range(network.num_layers):
        layer: Any = network.get_layer(index)
        if layer.type.name.startswith("ATTENTION_"):
            layer.__class__ = boundary  # a network returns layers of the base class
            layer.attention.decomposable = True


def dequantize_constants(network: trt.INetworkDefinition, log: Log) -> None:
    """Put a dequantization of scale 1 between integer constants and the Gathers that read them.

    A quantized embedding is looked up as integers and scaled afterwards, so that ONNX Runtime
    never dequantizes the whole table. The builder takes a constant of int8 in front of a
    dequantization only; it computes the same with it, and keeps the table as int8 (tried with
    TensorRT for RTX 1.7.1).
    """
    trt = log.module
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.GATHER or layer.get_input(0).dtype != trt.DataType.INT8:
            continue
        scale = network.add_constant((), trt.Weights(_ONE)).get_output(0)
        plain = network.add_dequantize(layer.get_input(0), scale, trt.DataType.FLOAT)
        layer.set_input(0, plain.get_output(0))
