"""Every architecture of the export, with real weights in ONNX Runtime, against torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.graph.families import DECODERS, OPSET, TIED, initializers_of, make_inputs

if TYPE_CHECKING:
    from tests.graph.families import Family

SHAPES = ((1, 1), (1, 9), (2, 16), (3, 31), (5, 8))
MACHINE_TRACES = (b"/home/", b"/usr/", b"/tmp/", b"site-packages", b".py", b"Traceback", b"torch.")


def relative_error(actual, expected):
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_graph_computes_what_torch_computes_with_padding(family: Family, shape) -> None:
    feeds, mask = make_inputs(family, *shape, seed=sum(shape))
    actual, expected = family.graph_output(feeds), family.torch_output(feeds)
    assert actual.shape == expected.shape
    if "sequence" in family.task.output_axes:
        actual, expected = actual[mask], expected[mask]
    assert relative_error(actual, expected) < 1e-5


def test_padding_does_not_change_what_a_row_computes(family: Family) -> None:
    feeds, mask = make_inputs(family, 3, 12)
    together = family.graph_output(feeds)
    for row in range(3):
        kept = mask[row]
        alone = family.graph_output({name: v[row : row + 1, kept] for name, v in feeds.items()})
        expected = alone[0]
        actual = together[row][kept] if "sequence" in family.task.output_axes else together[row]
        assert relative_error(actual, expected) < 1e-5


def test_sequence_lengths_up_to_the_last_position_run(family: Family) -> None:
    longest = 128
    feeds, _ = make_inputs(family, 1, longest)
    assert relative_error(family.graph_output(feeds), family.torch_output(feeds)) < 1e-5


def test_inputs_and_outputs_have_the_names_and_axes_that_users_know(family: Family) -> None:
    inputs = {node.name: node.shape for node in family.session.get_inputs()}
    assert {"input_ids", "attention_mask"} <= set(inputs)
    past = {n: inputs.pop(n) for n in list(inputs) if n.startswith("past_key_values.")}
    decoder = (family.kind, family.task.name) in DECODERS
    mask = inputs.pop("attention_mask")
    assert mask == ["batch", "total_sequence" if decoder else "sequence"]
    assert all(shape == ["batch", "sequence"] for shape in inputs.values())
    assert all(shape[::2] == ["batch", "past_sequence"] for shape in past.values())
    assert ("position_ids" in inputs) == decoder
    assert ("token_type_ids" in inputs) == (family.kind == "bert")
    output, *present = family.session.get_outputs()
    assert list(past) == [
        f"past_key_values.{i}.{what}"
        for i in range(family.model.config.num_hidden_layers if decoder else 0)
        for what in ("key", "value")
    ]
    assert [(node.name, node.shape) for node in present] == [
        (name.replace("past_key_values", "present"), [*shape[:2], "total_sequence", shape[3]])
        for name, shape in past.items()
    ]
    assert output.name == family.task.output
    assert output.shape[0] == "batch"
    if "sequence" in family.task.output_axes:
        assert output.shape[1] == "sequence"
    assert isinstance(output.shape[-1], int)


def test_every_parameter_has_its_state_dict_name_dtype_and_shape(family: Family) -> None:
    state = family.model.state_dict()
    for parameter in family.template.parameters:
        assert parameter.shape == tuple(state[parameter.name].shape), parameter.name
        assert parameter.dtype == "float32"
    initializers = initializers_of(family.graph)
    for parameter in family.template.parameters:
        stored = initializers[parameter.name]
        assert tuple(stored.dims) == parameter.stored_shape
        assert {entry.key: entry.value for entry in stored.external_data}["location"]


def test_no_parameter_of_the_model_is_lost(family: Family) -> None:
    """Whatever torch's forward pass reads is in the graph: by name, or as a tied alias.

    The oracle is torch: a parameter that is not in the graph must not change the output.
    """
    named = {
        name
        for parameter in family.template.parameters
        for name in (parameter.name, *parameter.aliases)
    }
    feeds, _ = make_inputs(family, 2, 8)
    before = family.torch_output(feeds)[..., :8]
    for name, value in family.model.named_parameters():
        if name in named:
            continue
        kept = value.data.clone()
        value.data.add_(1.0)
        try:
            after = family.torch_output(feeds)[..., :8]
        finally:
            value.data.copy_(kept)
        assert np.array_equal(before, after), f"{name} is read by torch and not in the graph"


def test_no_parameter_has_its_value_in_the_graph(family: Family) -> None:
    for parameter in family.template.parameters:
        stored = initializers_of(family.graph)[parameter.name]
        assert not stored.raw_data
        assert not stored.float_data


def test_no_weight_is_transposed_or_cast_at_run_time(family: Family) -> None:
    initializers = initializers_of(family.graph)
    offenders = [
        (node.op_type, node.input[0])
        for node in family.graph.graph.node
        if node.op_type in {"Transpose", "Cast", "Identity", "Reshape"}
        and node.input[0] in initializers
    ]
    assert offenders == []


def test_graph_is_small_and_flat(family: Family) -> None:
    """No functions, no control flow, no shape arithmetic by the hundred."""
    assert not family.graph.functions
    kinds = {node.op_type for node in family.graph.graph.node}
    assert not kinds & {"If", "Loop", "Scan"}
    assert len(family.graph.graph.node) < (400 if family.kind == "deberta-v2" else 200)
    assert len(family.template.onnx_bytes) < 100_000


def test_serialized_graph_says_nothing_of_the_machine_it_came_from(family: Family) -> None:
    data = family.template.onnx_bytes
    assert [trace for trace in MACHINE_TRACES if trace in data] == []
    for node in family.graph.graph.node:
        assert not node.metadata_props
        assert not node.doc_string


def test_template_describes_its_model(family: Family) -> None:
    template = family.template
    assert template.model_class == type(family.model).__name__
    assert template.prefix == f"{family.model.base_model_prefix}."
    assert [entry.version for entry in family.graph.opset_import if not entry.domain] == [OPSET]
    names = [parameter.name for parameter in template.parameters]
    assert names == sorted(set(names))


@pytest.mark.parametrize("family", TIED, ids="-".join, indirect=True)
def test_tied_head_is_one_stored_copy_read_by_gemm(family: Family) -> None:
    embedding = family.model.get_input_embeddings().weight
    names = [n for n, v in family.model.state_dict(keep_vars=True).items() if v is embedding]
    assert len(names) == 2
    (parameter,) = (p for p in family.template.parameters if p.name in names)
    assert {parameter.name, *parameter.aliases} == set(names)
    assert not parameter.transposed
    readers = [n for n in family.graph.graph.node if parameter.name in n.input]
    assert sorted(node.op_type for node in readers) == ["Gather", "Gemm"]
    (gemm,) = (node for node in readers if node.op_type == "Gemm")
    assert {a.name: a.i for a in gemm.attribute}["transB"] == 1
    vocabulary_sized = [
        i.name for i in family.graph.graph.initializer if list(i.dims) == list(embedding.shape)
    ]
    assert vocabulary_sized == [parameter.name]


@pytest.mark.parametrize("family", [("llama", "text-generation")], ids="-".join, indirect=True)
def test_untied_head_is_stored_the_way_it_is_read(family: Family) -> None:
    head = next(p for p in family.template.parameters if p.name == "lm_head.weight")
    assert head.transposed
    assert not head.aliases
    assert tuple(initializers_of(family.graph)["lm_head.weight"].dims) == head.shape[::-1]
