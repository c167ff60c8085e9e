"""Interfaces of graphs: derived from model and task, and read back from ONNX."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import onnx
import pytest
import transformers

from lora_export.core.errors import UnsupportedError
from lora_export.graph.spec import tasks
from lora_export.graph.spec.signature import Input, Output, Signature, read_signature, signature_of
from lora_export.graph.trace.kv_cache import cache_layers

if TYPE_CHECKING:
    from tests.graph.families import Family

TEXT = ("batch", "sequence")


def test_text_inputs_follow_what_the_model_takes() -> None:
    taken = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    bert, roberta = transformers.BertConfig(), transformers.RobertaConfig(type_vocab_size=1)
    task = tasks.by_name("fill-mask")
    found = signature_of(bert, task, taken, dtype="float16")
    assert found.inputs == tuple(Input(name, "int64", TEXT) for name in taken[:3])
    assert found.outputs == (Output("logits", TEXT),)
    assert signature_of(roberta, task, taken, dtype="float16").input_names == taken[:2]


def row_reading(*inputs: str) -> tasks.Task:
    return tasks.Task("any", "AutoModel", (), None, "pooler_output", ("batch",), inputs=inputs)


def test_sizes_that_the_config_fixes_are_numbers() -> None:
    pixels = row_reading("pixel_values")
    vit = transformers.ViTConfig(image_size=[30, 20], num_channels=1)
    found = signature_of(vit, pixels, ("pixel_values",), dtype="float16")
    assert found.inputs == (Input("pixel_values", "float16", ("batch", 1, 30, 20)),)
    assert found.inputs[0].dynamic == (0,)
    clip = transformers.CLIPConfig(vision_config={"image_size": 48})
    found = signature_of(clip, pixels, ("pixel_values",), dtype="float32")
    assert found.inputs[0].axes == ("batch", 3, 48, 48)
    whisper = transformers.WhisperConfig(num_mel_bins=40, max_source_positions=20)
    features = row_reading("input_features")
    found = signature_of(whisper, features, ("input_features",), dtype="float32")
    assert found.inputs[0].axes == ("batch", 40, 40)  # two frames are one position


def test_sizes_that_the_config_leaves_open_are_names() -> None:
    spectrogram = transformers.ASTConfig(num_mel_bins=40)
    features = row_reading("input_features")
    found = signature_of(spectrogram, features, ("input_features",), dtype="float32")
    assert found.inputs == (Input("input_features", "float32", ("batch", 40, "frames")),)


def test_model_that_does_not_take_what_the_task_reads_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'vit' takes no 'input_ids', which fill-mask needs"):
        signature_of(
            transformers.ViTConfig(), tasks.by_name("fill-mask"), ("pixel_values",), dtype="float32"
        )


@pytest.mark.parametrize("kind", ["layoutlm", "markuplm", "roc_bert", "tapas"])
def test_model_that_reads_more_than_text_at_every_token_is_refused(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind)
    model_class = transformers.AutoModel._model_mapping[type(config)]
    accepted = inspect.signature(model_class.forward).parameters
    task = tasks.by_name("feature-extraction")
    with pytest.raises(UnsupportedError, match=f"'{kind}' reads '.*' too, which no task provides"):
        signature_of(config, task, accepted, dtype="float32")


def test_model_that_reads_text_beside_images_is_refused_for_images_alone() -> None:
    task = tasks.by_name("image-feature-extraction")
    with pytest.raises(UnsupportedError, match="'clip' also reads text"):
        signature_of(
            transformers.CLIPConfig(), task, ("input_ids", "pixel_values"), dtype="float32"
        )


def test_interface_read_from_the_graph_is_the_one_it_was_traced_with(family: Family) -> None:
    found = read_signature(family.graph)
    accepted = inspect.signature(family.model.forward).parameters
    cache = cache_layers(family.model) if family.task.causal else ()
    wanted = signature_of(family.model.config, family.task, accepted, dtype="float32", cache=cache)
    assert found.inputs == wanted.inputs
    assert found.output_names == wanted.output_names
    for got, output in zip(found.outputs, wanted.outputs, strict=True):
        assert got.axes[: len(output.axes)] == output.axes


def test_initializers_are_no_inputs() -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["batch", 3])
    weight = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1])
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [0.0])
    graph = onnx.helper.make_graph([], "g", [value, weight], [value], [tensor])
    inputs = (Input("x", "float16", ("batch", 3)),)
    assert read_signature(onnx.helper.make_model(graph)) == Signature(
        inputs, (Output("x", ("batch", 3)),)
    )


def test_input_that_is_no_array_of_numbers_is_named() -> None:
    text = onnx.helper.make_tensor_value_info("text", onnx.TensorProto.STRING, ["batch"])
    graph = onnx.helper.make_graph([], "main", [text], [])
    with pytest.raises(UnsupportedError, match="'text' has an unsupported type"):
        read_signature(onnx.helper.make_model(graph))
