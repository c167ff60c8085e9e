from __future__ import annotations

from math import prod

import numpy as np
import pytest
from onnx import helper

from lora_export.core.errors import InputError
from lora_export.graph.foreign.adopt import adopt, require_same_base
from lora_export.graph.foreign.match import match_graph
from lora_export.graph.foreign.open_graph import open_graph
from tests.helpers.foreign import initializer, save_graph, tensors_of

RANDOM = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


BASE = {
    "bert.query.weight": normal(8, 8),
    "bert.query.bias": normal(8),
    "bert.key.weight": normal(8, 8),
    "bert.up.weight": normal(12, 8),
    "bert.embed.weight": normal(40, 8),
}


def matched(tmp_path, nodes, values, base=None, **settings):
    path = save_graph(
        tmp_path / "m.onnx", nodes, [initializer(n, v) for n, v in values.items()], width=8,
        **settings,
    )  # fmt: skip
    tensors = tensors_of(BASE if base is None else base)
    graph = open_graph(path, {prod(each.shape) for each in tensors.values()})
    return graph, match_graph(graph, tensors, "bert.")


def product(weight: str, name: str = "", out: str = "y") -> list:
    return [helper.make_node("MatMul", ["x", weight], [out], name=name)]


def by_initializer(matching):
    return {match.initializer: match for match in matching.matches}


@pytest.mark.parametrize(
    "name", ["bert.query.bias", "query.bias", "model.bert.query.bias", "wrapped.model.query.bias"]
)
def test_names_are_found_with_and_without_what_comes_before(tmp_path, name) -> None:
    nodes = [helper.make_node("Add", ["x", name], ["y"])]
    _, matching = matched(tmp_path, nodes, {name: BASE["bert.query.bias"]})
    assert by_initializer(matching)[name].parameter.name == "bert.query.bias"


@pytest.mark.parametrize("external", [False, True])
def test_transposed_weights_without_names_are_found_by_content(tmp_path, external) -> None:
    values = {
        "onnx::MatMul_1": BASE["bert.query.weight"].T,
        "val_2": BASE["bert.up.weight"].T,
        "as_it_is": BASE["bert.key.weight"],
    }
    nodes = [
        *product("onnx::MatMul_1", out="a"),
        *product("val_2", out="b"),
        helper.make_node("Gemm", ["x", "as_it_is"], ["y"], transB=1),
    ]
    _, matching = matched(tmp_path, nodes, values, external=external)
    found = by_initializer(matching)
    assert {name: each.parameter.name for name, each in found.items()} == {
        "onnx::MatMul_1": "bert.query.weight",
        "val_2": "bert.up.weight",
        "as_it_is": "bert.key.weight",
    }
    assert [found[name].parameter.transposed for name in values] == [True, True, False]
    assert {each.parameter.module_type for each in found.values()} == {"Linear"}
    assert found["val_2"].parameter.shape == (12, 8)
    assert matching.absent == ("bert.embed.weight", "bert.query.bias")


def test_layout_tells_conv1d_from_linear_and_embeddings(tmp_path) -> None:
    """GPT-2's ``[in, out]`` is stored as it is and read as it is, even where it is square."""
    nodes = [
        *product("bert.query.weight", out="a"),
        helper.make_node("Transpose", ["bert.key.weight"], ["t"], perm=[1, 0]),
        *product("t", out="b"),
        helper.make_node("Gather", ["bert.embed.weight", "x"], ["y"]),
    ]
    values = {n: BASE[n] for n in ("bert.query.weight", "bert.key.weight", "bert.embed.weight")}
    _, matching = matched(tmp_path, nodes, values)
    kinds = {each.initializer: each.parameter.module_type for each in matching.matches}
    assert kinds == {
        "bert.query.weight": "Conv1D",
        "bert.key.weight": "Linear",
        "bert.embed.weight": "Embedding",
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_casts_of_the_base_are_equal_to_it(tmp_path, dtype) -> None:
    held = BASE["bert.up.weight"].astype(dtype).T
    _, matching = matched(tmp_path, product("val_1"), {"val_1": held})
    (match,) = matching.matches
    assert match.parameter.name == "bert.up.weight"
    assert match.parameter.dtype == np.dtype(dtype).name


def test_float16_conversion_that_lifts_tiny_values(tmp_path) -> None:
    """The clamping of onnxconverter-common for magnitudes below 1e-7."""
    base = {"a.weight": np.concatenate([np.full((1, 8), 2e-8, np.float32), normal(7, 8)])}
    held = base["a.weight"].copy()
    held[np.abs(held) < 1e-7] = 1e-7
    _, matching = matched(
        tmp_path, product("a.weight"), {"a.weight": held.astype(np.float16)}, base
    )
    assert not matching.contradicted
    assert len(matching.matches) == 1


def test_one_changed_element_is_no_match(tmp_path) -> None:
    changed = BASE["bert.up.weight"].T.copy()
    changed[3, 5] = np.nextafter(changed[3, 5], np.float32(9))
    _, matching = matched(tmp_path, product("val_1"), {"val_1": changed})
    assert matching.unmatched == ("val_1",)
    _, matching = matched(tmp_path, product("bert.up.weight"), {"bert.up.weight": changed.T})
    assert matching.contradicted == ("bert.up.weight",)


TWINS = {**BASE, "bert.key.weight": BASE["bert.query.weight"]}


def test_equal_tensors_are_told_apart_by_the_node_path(tmp_path) -> None:
    values = {"m1": TWINS["bert.query.weight"].T, "m2": TWINS["bert.key.weight"].T}
    nodes = [*product("m1", "/bert/key/MatMul", "a"), *product("m2", "/bert/query/MatMul")]
    _, matching = matched(tmp_path, nodes, values, TWINS)
    names = {each.initializer: each.parameter.name for each in matching.matches}
    assert names == {"m1": "bert.key.weight", "m2": "bert.query.weight"}


def test_equal_tensors_are_told_apart_by_scopes(tmp_path) -> None:
    (node,) = product("m1")
    scopes = node.metadata_props.add()
    scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'bert', 'bert.key', 'linear']"
    _, matching = matched(tmp_path, [node], {"m1": TWINS["bert.key.weight"].T}, TWINS)
    assert by_initializer(matching)["m1"].parameter.name == "bert.key.weight"


def test_equal_tensors_are_told_apart_by_the_bias_beside(tmp_path) -> None:
    nodes = [*product("m1", out="h"), helper.make_node("Add", ["bert.query.bias", "h"], ["y"])]
    values = {"m1": TWINS["bert.query.weight"].T, "bert.query.bias": BASE["bert.query.bias"]}
    _, matching = matched(tmp_path, nodes, values, TWINS)
    assert by_initializer(matching)["m1"].parameter.name == "bert.query.weight"


def test_equal_tensors_that_nothing_tells_apart_are_ambiguous(tmp_path) -> None:
    graph, matching = matched(tmp_path, product("m1"), {"m1": TWINS["bert.key.weight"].T}, TWINS)
    assert matching.ambiguous == {"m1": ("bert.key.weight", "bert.query.weight")}
    assert not matching.matches
    with pytest.raises(InputError, match="none of the 1 tensors"):
        require_same_base(graph, matching, "base")


def test_a_named_twin_of_something_ambiguous_cannot_be_changed_alone(tmp_path) -> None:
    nodes = [*product("m1", out="a"), helper.make_node("Gemm", ["x", "bert.query.weight"], ["y"])]
    values = {"m1": TWINS["bert.key.weight"].T, "bert.query.weight": TWINS["bert.query.weight"]}
    _, matching = matched(tmp_path, nodes, values, TWINS)
    assert by_initializer(matching)["bert.query.weight"].parameter.aliases == ("m1 (a copy)",)


def test_zeros_prove_nothing_by_their_content(tmp_path) -> None:
    base = {**BASE, "bert.norm.bias": np.zeros(8, np.float32)}
    nodes = [helper.make_node("Add", ["x", "zeros"], ["y"])]
    _, matching = matched(tmp_path, nodes, {"zeros": base["bert.norm.bias"]}, base)
    assert matching.ambiguous == {"zeros": ("bert.norm.bias",)}
    nodes[0].name = "/bert/norm/Add"
    _, matching = matched(tmp_path, nodes, {"zeros": base["bert.norm.bias"]}, base)
    assert by_initializer(matching)["zeros"].parameter.name == "bert.norm.bias"


TIED = {"model.embed.weight": normal(40, 8), "model.up.weight": normal(12, 8)}


def test_tied_embedding_in_one_initializer_bears_both_names(tmp_path) -> None:
    nodes = [
        helper.make_node("Gather", ["model.embed.weight", "x"], ["e"]),
        helper.make_node("Transpose", ["model.embed.weight"], ["t"], name="/lm_head/Transpose"),
        *product("t", "/lm_head/MatMul"),
    ]
    _, matching = matched(tmp_path, nodes, {"model.embed.weight": TIED["model.embed.weight"]}, TIED)
    (match,) = matching.matches
    assert match.parameter.aliases == ("lm_head.weight",)


def test_tied_embedding_in_two_initializers_is_two_parameters(tmp_path) -> None:
    nodes = [
        helper.make_node("Gather", ["model.embed.weight", "x"], ["e"]),
        *product("onnx::MatMul_1", "/lm_head/MatMul"),
    ]
    values = {
        "model.embed.weight": TIED["model.embed.weight"],
        "onnx::MatMul_1": TIED["model.embed.weight"].T,
    }
    _, matching = matched(tmp_path, nodes, values, TIED)
    found = by_initializer(matching)
    head = found["onnx::MatMul_1"].parameter
    assert (head.name, head.transposed, head.aliases) == ("lm_head.weight", True, ())
    assert found["model.embed.weight"].parameter.aliases == ()


def test_equal_tensors_stored_once_cannot_be_changed_apart(tmp_path) -> None:
    nodes = [*product("bert.query.weight", out="a"), *product("bert.query.weight")]
    _, matching = matched(tmp_path, nodes, {"bert.query.weight": TWINS["bert.query.weight"]}, TWINS)
    assert matching.matches[0].parameter.aliases == ("bert.key.weight",)


def test_head_that_the_base_lacks(tmp_path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "classifier.weight"], ["a"], transB=1),
        *product("onnx::MatMul_9", "/scorer/MatMul", "b"),
        *product("bert.query.weight"),
    ]
    values = {
        "classifier.weight": normal(3, 8),
        "onnx::MatMul_9": normal(8, 5),
        "bert.query.weight": BASE["bert.query.weight"],
    }
    _, matching = matched(tmp_path, nodes, values)
    heads = {each.initializer: each.parameter for each in matching.matches if each.source is None}
    assert (heads["classifier.weight"].shape, heads["classifier.weight"].transposed) == (
        (3, 8), False,
    )  # fmt: skip
    scorer = heads["onnx::MatMul_9"]
    assert (scorer.name, scorer.shape, scorer.transposed) == ("scorer.weight", (5, 8), True)


def test_copies_of_one_parameter_become_one_initializer(tmp_path) -> None:
    """ALBERT's shared layers, whose transposes TorchScript folds one by one."""
    values = {
        "m1": BASE["bert.up.weight"].T,
        "m2": BASE["bert.up.weight"].T,
        "other": normal(9, 40),
    }
    nodes = [*product("m1", out="a"), *product("m2", out="b"),
             helper.make_node("MatMul", ["b", "other"], ["y"])]  # fmt: skip
    graph, matching = matched(tmp_path, nodes, values)
    adopted = adopt(graph, matching, prefix="", model_class="Model")
    model = graph.model
    assert [each.name for each in adopted.template.parameters] == ["bert.up.weight"]
    assert [node.input[1] for node in model.graph.node] == ["bert.up.weight"] * 2 + ["other"]
    assert {each.name for each in model.graph.initializer} == {"bert.up.weight", "other"}
    assert set(adopted.kept) == {"other"}
    assert adopted.report.by_content == 2
    assert [row.initializer for row in adopted.report.unmatched] == ["other"]


def test_other_value_of_a_parameters_name_gives_way(tmp_path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["bert.up.weight"]),
        helper.make_node("MatMul", ["bert.up.weight", "m1"], ["y"]),
    ]
    graph, matching = matched(tmp_path, nodes, {"m1": BASE["bert.up.weight"].T})
    adopt(graph, matching, prefix="", model_class="Model")
    first, second = graph.model.graph.node
    assert second.input[1] == "bert.up.weight"
    assert first.output[0] == second.input[0] != "bert.up.weight"


def test_matching_reads_little_of_what_does_not_match(tmp_path) -> None:
    """A hundred candidates of one shape: each is probed, and only the equal one is read whole."""
    base = {f"layer.{index}.weight": normal(64, 64) for index in range(100)}
    path = save_graph(
        tmp_path / "m.onnx", product("m1"), [initializer("m1", base["layer.57.weight"].T)], width=64
    )
    read = []

    class Counting:
        def __init__(self, tensor) -> None:
            self.tensor = tensor
            self.name, self.dtype, self.shape = tensor.name, tensor.dtype, tensor.shape

        def read_into(self, buffer, offset_bytes) -> None:
            read.append(len(buffer))
            self.tensor.read_into(buffer, offset_bytes)

    tensors = {name: Counting(each) for name, each in tensors_of(base).items()}
    matching = match_graph(open_graph(path, {64 * 64}), tensors, "")
    assert [each.parameter.name for each in matching.matches] == ["layer.57.weight"]
    assert sum(read) < 3 * 64 * 64 * 4 + 100 * 2 * 32 * 4
