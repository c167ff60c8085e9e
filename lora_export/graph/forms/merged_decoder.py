"""An encoder and a decoder in optimum's form, made of the pair that an export has.

    encoder_model           inputs of the encoder → last_hidden_state
    decoder_model_merged    input_ids, encoder_attention_mask, encoder_hidden_states,
                            past_key_values.{i}.decoder.key|value, .encoder.key|value,
                            use_cache_branch
                            → logits, present.{i}.decoder.key|value, .encoder.key|value

In an export's pair the encoder's graph computes what each layer's cross-attention makes of
``last_hidden_state`` (`lora_export.graph.trace.encoder_decoder`). Here the nodes from there to
``present.{i}.encoder.*`` are moved to the decoder, into the branch of an ``If`` that is taken for
the first tokens; the other branch returns the past. Their weights become initializers of the main
graph (quantized ones of the branch) at the places in weight files that they had: nothing is read of
them.

Optimum assigns a past to its inputs by their order: layer by layer, decoder before encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
from onnx import helper

from lora_export.core.errors import UnsupportedError
from lora_export.graph.foreign.rewire import rename_values
from lora_export.graph.forms.node_slices import keep_outputs, nodes_behind, read_by
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CACHE_BRANCH", "HIDDEN_STATES", "merged_pair"]

CACHE_BRANCH: Final = "use_cache_branch"
HIDDEN_STATES: Final = "encoder_hidden_states"
_ENCODED: Final = "last_hidden_state"
_PAST_LENGTH: Final = "past_encoder_sequence"
"""The length of the past keys of the encoder: 0 for the first tokens, so another axis than that of
``encoder_hidden_states``."""
_NEW: Final = "from_encoder."
"""How values begin that came from the encoder's graph, unique in the decoder's."""
_DEQUANTIZE: Final = "DequantizeLinear"
_KEPT: Final = "from_past."
_HINT: Final = "ONNX Runtime runs the export's own two graphs: lora_export.open_export."


def merged_pair(encoder_bytes: bytes, decoder_bytes: bytes) -> tuple[bytes, bytes]:
    """Return an encoder and its decoder in optimum's form; the same input, same bytes.

    Args:
        encoder_bytes: The encoder's graph of an export.
        decoder_bytes: The decoder's.

    Raises:
        ExportDirectoryError: A graph cannot be parsed.
        UnsupportedError: They are not the graphs that an export of this version has.
    """
    encoder = parse_onnx(encoder_bytes, "the encoder")
    decoder = parse_onnx(decoder_bytes, "the decoder")
    cross = [each for each in decoder.graph.input if _is_cross(each.name)]
    encoded = {each.name: each for each in encoder.graph.output}
    if (
        _ENCODED not in encoded
        or not cross
        or {_present(each.name) for each in cross} - set(encoded)
    ):
        msg = "the encoder's graph does not return what the decoder's reads of it"
        raise UnsupportedError(msg, hint="Export again, without --graph.")
    inputs = _inputs(decoder.graph, cross, encoded[_ENCODED])
    outputs = _outputs(decoder.graph, cross)
    _move_nodes(encoder.graph, decoder.graph, cross)
    for field, values in ((decoder.graph.input, inputs), (decoder.graph.output, outputs)):
        del field[:]
        field.extend(values)
    keep_outputs(encoder.graph, [_ENCODED])
    first: bytes = encoder.SerializeToString(deterministic=True)
    second: bytes = decoder.SerializeToString(deterministic=True)
    return first, second


def _is_cross(name: str) -> bool:
    return name.startswith(PAST) and ".encoder." in name


def _present(name: str) -> str:
    return PRESENT + name.removeprefix(PAST)


def _move_nodes(
    encoder: onnx.GraphProto, decoder: onnx.GraphProto, cross: Sequence[onnx.ValueInfoProto]
) -> None:
    """Let `decoder` compute `cross` of the hidden states, or take the past; mutates `decoder`."""
    wanted = [_present(each.name) for each in cross]
    nodes = nodes_behind(encoder, wanted, stop_at=[_ENCODED])
    constants = _shared_values(encoder, decoder, nodes)
    results = [_returned(each, _present(each.name)) for each in cross]
    computed = helper.make_graph(nodes, "first_tokens", [], results, constants)
    made = [name for node in computed.node for name in node.output]
    new = {name: f"{_NEW}{name}" for name in (*made, *(each.name for each in constants))}
    rename_values(computed, {**new, _ENCODED: HIDDEN_STATES})
    kept = helper.make_graph(
        [helper.make_node("Identity", [each.name], [f"{_KEPT}{each.name}"]) for each in cross],
        "next_tokens",
        [],
        [_returned(each, f"{_KEPT}{each.name}") for each in cross],
    )
    rename_values(decoder, {each.name: _present(each.name) for each in cross})
    branch = helper.make_node(
        "If", [CACHE_BRANCH], wanted, "cross_attention", then_branch=kept, else_branch=computed
    )
    rest = list(decoder.node)
    del decoder.node[:]
    decoder.node.extend([branch, *rest])


def _shared_values(
    encoder: onnx.GraphProto, decoder: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]
) -> list[onnx.TensorProto]:
    """Give `decoder` the weights that `nodes` of `encoder` read; mutates `decoder`.

    Returns:
        The other initializers that they read, which go with the nodes: constants, and integers with
        their scales, which ONNX Runtime fuses with a product only where they lie in one graph.

    Raises:
        UnsupportedError: The nodes read something else of the encoder than its result.
    """
    read = read_by(nodes) - {_ENCODED}
    initializers = {each.name: each for each in encoder.initializer}
    if foreign := sorted(read - set(initializers)):
        msg = f"the cross-attention's keys and values follow from {foreign[0]!r} of the encoder too"
        raise UnsupportedError(msg, hint=_HINT)
    held = {each.name: each for each in decoder.initializer}
    dequantized = {name for node in nodes if node.op_type == _DEQUANTIZE for name in node.input}
    constants: list[onnx.TensorProto] = []
    for name in sorted(read):
        tensor = initializers[name]
        if tensor.data_location != onnx.TensorProto.EXTERNAL or name in dequantized:
            constants.append(tensor)
        elif name not in held:
            decoder.initializer.append(tensor)
        elif held[name].SerializeToString(deterministic=True) != tensor.SerializeToString(
            deterministic=True
        ):
            msg = f"the weight {name!r} of encoder and decoder lies in two places"
            raise UnsupportedError(msg, hint="Export again.")
    return constants


def _returned(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """Return the output of a branch for a past input: its type, and the axes that are fixed."""
    kind = value.type.tensor_type
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
    return helper.make_tensor_value_info(name, kind.elem_type, [*sizes[:2], None, *sizes[3:]])


def _inputs(
    decoder: onnx.GraphProto, cross: Sequence[onnx.ValueInfoProto], encoded: onnx.ValueInfoProto
) -> list[onnx.ValueInfoProto]:
    """Return the inputs in optimum's order, with the two that it adds."""
    states = _copy(encoded, HIDDEN_STATES)
    states.type.tensor_type.shape.dim[1].CopyFrom(cross[0].type.tensor_type.shape.dim[2])
    held = {each.name: _copy(each, each.name) for each in decoder.input}
    for each in cross:
        length = held[each.name].type.tensor_type.shape.dim[2]
        length.Clear()
        length.dim_param = _PAST_LENGTH
    others = [value for name, value in held.items() if not name.startswith(PAST)]
    past = [held[PAST + name] for name in _order(cross)]
    flag = helper.make_tensor_value_info(CACHE_BRANCH, onnx.TensorProto.BOOL, [1])
    return [*others, states, *past, flag]


def _outputs(
    decoder: onnx.GraphProto, cross: Sequence[onnx.ValueInfoProto]
) -> list[onnx.ValueInfoProto]:
    """Return the outputs in optimum's order, with what the cross-attentions keep."""
    held = {each.name: _copy(each, each.name) for each in decoder.output}
    held |= {_present(each.name): _copy(each, _present(each.name)) for each in cross}
    present = [held.pop(PRESENT + name) for name in _order(cross)]
    return [*held.values(), *present]


def _order(cross: Sequence[onnx.ValueInfoProto]) -> list[str]:
    """Return the ends of the names of a past, as optimum expects them one after another."""
    layers = len(cross) // 2
    return [
        f"{layer}.{part}.{what}"
        for layer in range(layers)
        for part in ("decoder", "encoder")
        for what in ("key", "value")
    ]


def _copy(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy
