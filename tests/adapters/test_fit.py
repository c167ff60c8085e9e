from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.adapters.fit import UNKNOWN_MODULE, check_fit, prefix_of
from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.parameters import Parameter
from tests.helpers.handmade import BERT_SHAPES, save_adapter, shapes_of_lora

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.fit import Fit

QUERY = "encoder.layer.0.attention.self.query"
HEAD = frozenset({"classifier.weight", "classifier.bias"})


def parameters(
    shapes: Mapping[str, tuple[int, ...]], module_type: str = UNKNOWN_MODULE
) -> list[Parameter]:
    return [Parameter(name, shape, "float32", module_type) for name, shape in shapes.items()]


def adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]], **config: object) -> Adapter:
    return read_adapter(save_adapter(folder / "adapter", shapes, **config), name="a", source="a")


def fit(read: Adapter, base: list[Parameter], model_type: str = "bert") -> Fit:
    prefix = prefix_of(model_type, base, read)
    return check_fit(read, base, prefix=prefix, model_type=model_type, resizable=HEAD)


@pytest.mark.parametrize("in_base", ["", "bert."])
@pytest.mark.parametrize("in_adapter", ["", "bert."])
def test_bare_and_prefixed_names_meet(tmp_path: Path, in_base: str, in_adapter: str) -> None:
    base = parameters({in_base + name: shape for name, shape in BERT_SHAPES.items()})
    found = fit(adapter(tmp_path, shapes_of_lora({in_adapter + QUERY: (8, 8)})), base)
    assert found.fits
    assert found.matched == 2
    assert [p.name for p in found.changed] == [f"{in_base}{QUERY}.weight"]


def test_a_known_model_type_answers_to_its_own_prefix_only(tmp_path: Path) -> None:
    read = adapter(tmp_path, shapes_of_lora({f"roberta.{QUERY}": (8, 8)}))
    assert not fit(read, parameters(BERT_SHAPES), "bert").fits
    assert fit(read, parameters(BERT_SHAPES), "roberta").fits


@pytest.mark.parametrize("in_base", [False, True])
def test_an_unknown_model_type_takes_the_prefix_that_most_modules_have(
    tmp_path: Path, in_base: bool
) -> None:
    shapes = {("core." if in_base else "") + name: shape for name, shape in BERT_SHAPES.items()}
    module = QUERY if in_base else f"core.{QUERY}"
    read = adapter(tmp_path, shapes_of_lora({module: (8, 8)}))
    base = parameters(shapes)
    assert prefix_of("new-model", base, read) == "core."
    assert fit(read, base, "new-model").fits


def test_no_prefix_is_preferred_where_it_is_as_good(tmp_path: Path) -> None:
    read = adapter(tmp_path, shapes_of_lora({QUERY: (8, 8)}))
    assert prefix_of("new-model", parameters(BERT_SHAPES), read) == ""


def test_a_weight_of_another_shape_is_a_mismatch_that_names_both(tmp_path: Path) -> None:
    read = adapter(tmp_path, shapes_of_lora({f"bert.{QUERY}": (16, 8)}))
    found = fit(read, parameters(BERT_SHAPES))
    assert found.mismatches == (f"bert.{QUERY}.weight: the update is [16, 8], the weight [8, 8]",)
    assert found.matched == 0
    assert found.changed == ()


def test_an_unknown_module_is_a_mismatch(tmp_path: Path) -> None:
    read = adapter(tmp_path, shapes_of_lora({"bert.encoder.layer.7.query": (8, 8)}))
    (line,) = fit(read, parameters(BERT_SHAPES)).mismatches
    assert line == "bert.encoder.layer.7.query.weight: the base has no parameter of this name"


@pytest.mark.parametrize(
    ("model_type", "fan_in_fan_out", "shape", "fits"),
    [
        ("gpt2", True, (8, 24), True),  # Conv1D: [in, out]
        ("gpt2", False, (8, 24), True),  # PEFT flips the flag of mixed targets
        ("gpt2", True, (24, 8), True),  # a Linear beside Conv1D
        ("mystery", True, (8, 24), True),
        ("mystery", False, (24, 8), True),
        ("mystery", False, (8, 24), False),
        ("gpt2", True, (8, 23), False),
    ],
)
def test_orientation(
    tmp_path: Path, model_type: str, fan_in_fan_out: bool, shape: tuple[int, int], fits: bool
) -> None:
    read = adapter(
        tmp_path, shapes_of_lora({"h.0.attn.c_attn": (24, 8)}), fan_in_fan_out=fan_in_fan_out
    )
    base = parameters({"h.0.attn.c_attn.weight": shape})
    assert fit(read, base, model_type).fits is fits


@pytest.mark.parametrize(("module_type", "fits"), [("Linear", False), ("Conv1D", True)])
def test_a_known_module_type_decides_the_orientation(
    tmp_path: Path, module_type: str, fits: bool
) -> None:
    read = adapter(tmp_path, shapes_of_lora({"h.0.attn.c_attn": (24, 8)}), fan_in_fan_out=True)
    base = parameters({"h.0.attn.c_attn.weight": (8, 24)}, module_type)
    assert fit(read, base, "gpt2").fits is fits


def test_an_embedding_is_vocabulary_first(tmp_path: Path) -> None:
    name = "base_model.model.bert.embeddings.word_embeddings.lora_embedding_"
    read = adapter(tmp_path, {f"{name}A": (2, 20), f"{name}B": (8, 2)})
    assert fit(read, parameters(BERT_SHAPES)).fits
    wrong = parameters({"embeddings.word_embeddings.weight": (8, 20)})
    assert fit(read, wrong).mismatches == (
        "bert.embeddings.word_embeddings.weight: the update is [20, 8], the weight [8, 20]",
    )


def test_a_head_that_the_base_lacks_is_brought(tmp_path: Path) -> None:
    shapes = {**shapes_of_lora(), "base_model.model.classifier.weight": (3, 8)}
    found = fit(adapter(tmp_path, shapes), parameters(BERT_SHAPES))
    assert found.fits
    assert found.brought == ("classifier.weight",)
    assert found.replaced == ()
    assert found.matched == 9


def test_a_head_of_the_base_is_replaced_even_with_other_labels(tmp_path: Path) -> None:
    shapes = {**shapes_of_lora(), "base_model.model.classifier.weight": (3, 8)}
    base = parameters({**BERT_SHAPES, "classifier.weight": (2, 8)})
    found = fit(adapter(tmp_path, shapes), base)
    assert found.fits
    assert found.replaced == ("classifier.weight",)


def test_a_head_of_another_width_in_is_a_mismatch(tmp_path: Path) -> None:
    shapes = {**shapes_of_lora(), "base_model.model.classifier.weight": (3, 9)}
    base = parameters({**BERT_SHAPES, "classifier.weight": (3, 8)})
    assert fit(adapter(tmp_path, shapes), base).mismatches == (
        "classifier.weight: the adapter has [3, 9], the model [3, 8]",
    )


@pytest.mark.parametrize(
    "path", ["bert.encoder.layer.9.attention.self.query.bias", "encoder.layer.9.query.bias"]
)
def test_a_saved_bias_inside_the_base_is_not_brought(tmp_path: Path, path: str) -> None:
    shapes = {**shapes_of_lora(), f"base_model.model.{path}": (8,)}
    found = fit(adapter(tmp_path, shapes), parameters(BERT_SHAPES))
    assert found.mismatches == (f"{path}: the base has no parameter of this name",)


@pytest.mark.parametrize("key", ["foo.bar", "extra.weight"])
def test_a_tensor_that_peft_would_pass_over_is_not_brought(tmp_path: Path, key: str) -> None:
    shapes = {**shapes_of_lora(), f"base_model.model.{key}": (3, 8)}
    found = fit(adapter(tmp_path, shapes), parameters(BERT_SHAPES))
    assert found.mismatches == (f"{key}: the base has no parameter of this name",)


def test_a_head_of_another_structure_is_not_brought(tmp_path: Path) -> None:
    shapes = {**shapes_of_lora(), "base_model.model.classifier.dense.weight": (8, 8)}
    base = parameters({**BERT_SHAPES, "classifier.weight": (2, 8)})
    assert not fit(adapter(tmp_path, shapes), base).fits


def test_an_update_of_a_tied_weight_fits(tmp_path: Path) -> None:
    read = adapter(tmp_path, shapes_of_lora({"lm_head": (20, 8)}))
    base = [Parameter("wte.weight", (20, 8), "float32", "Embedding", aliases=("lm_head.weight",))]
    assert fit(read, base, "gpt2").fits  # an export unties them


def test_a_parameter_that_is_saved_and_updated_fits(tmp_path: Path) -> None:
    query = f"base_model.model.bert.{QUERY}"
    shapes = {**shapes_of_lora(), f"{query}.base_layer.weight": (8, 8)}
    assert fit(adapter(tmp_path, shapes), parameters(BERT_SHAPES)).fits


def test_a_parameter_that_is_changed_twice_is_a_mismatch(tmp_path: Path) -> None:
    bare = f"base_model.model.{QUERY}"
    update = {f"{bare}.lora_A.weight": (2, 8), f"{bare}.lora_B.weight": (8, 2)}
    (line,) = fit(
        adapter(tmp_path, {**shapes_of_lora(), **update}), parameters(BERT_SHAPES)
    ).mismatches
    assert line.endswith("the adapter changes it twice")
