"""A builder's verbose log read: kernels by type, what only moves, recognised attentions."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorrt_rtx")

from tools.engine_layers import summarise

LOG = """Found node_matmul to be part of self-attention pattern.
Found node_softmax to be part of self-attention pattern.
After reformat layers: 1 layers
Layers:
Name: __mye1_myl0_0, LayerType: shape_call, Inputs: []
Name: node_MatMul_60+node_MatMul_52_myl0_2, LayerType: gemm, Inputs: [ { Name: x } ]
Name: __myl_AddReshTran_myl0_3, LayerType: kgen, Inputs: []
Name: __myl_MoveReplConc_myl0_4, LayerType: kgen, Inputs: []
"""


def test_layers_are_counted_by_type() -> None:
    found = summarise(LOG, 100, 2)
    assert found.kernels == 4
    assert found.types == {"kgen": 2, "shape_call": 1, "gemm": 1}
    assert found.moves == ["__myl_MoveReplConc_myl0_4"]
    assert (found.attentions, found.softmaxes, found.engine_bytes) == (1, 2, 100)
