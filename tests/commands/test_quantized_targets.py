"""``--quantize`` for targets and opsets without blocks: refused before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest

from lora_export.commands.build import _with_int8_blocks
from lora_export.commands.quantize_choice import choice_of, with_int8_blocks
from lora_export.commands.recipe import Recipe
from lora_export.commands.recipe_sections import QuantizeSpec
from lora_export.weights.quantization.methods import DEFAULT_METHOD, METHODS
from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quantize", "int4", "--target", "jetson-orin"], "'jetson-orin' may have JetPack 6"),
        (
            ["--quantize", "int8", "--quantize-block-size", "64", "--target", "jetson-orin"],
            "int8 in blocks of 64 needs opset 21",
        ),
        (
            ["--quantize", "int4", "--opset", "20"],
            "needs opset 21, and the opset is set to 20",
        ),
    ],
)
def test_blocks_are_refused_before_the_base_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    arguments = ["--base", str(tmp_path / "absent"), "--adapter", str(tmp_path / "absent")]
    result = call(capsys, "merge-and-build", *arguments, "--out", str(tmp_path / "out"), *flags)
    assert (result.code, said in result.err) == (4, True), result.err
    assert "--quantize int8" in result.err


@pytest.mark.parametrize(
    "flags",
    [
        ["--quantize", "int8", "--target", "jetson-orin"],
        ["--quantize", "int4", "--target", "jetson-orin", "--opset", "21"],
        ["--quantize", "int4", "--target", "jetson-thor"],
    ],
)
def test_what_a_target_has_gets_as_far_as_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    arguments = ["--base", str(tmp_path / "absent"), "--adapter", str(tmp_path / "absent")]
    result = call(capsys, "merge-and-build", *arguments, "--out", str(tmp_path / "out"), *flags)
    assert result.code == 3
    assert "absent" in result.err


@pytest.mark.parametrize(
    ("weights", "head", "opset", "target", "block_size"),
    [
        ("int8", None, None, "onnxruntime-cpu", 256),
        ("int8", None, None, "onnxruntime-cuda", 256),
        ("int8", None, None, "rtx", 256),
        ("int8", None, None, "jetson-orin", None),
        ("int8", None, None, "l4", None),
        ("int8", None, 21, "jetson-orin", 256),
        ("int8", None, 20, "onnxruntime-cpu", None),
        ("int8", "int4", None, "onnxruntime-cpu", None),
        ("int4", "int8", None, "onnxruntime-cpu", None),
    ],
)
def test_int8_is_in_blocks_where_every_runtime_of_the_target_reads_them(
    weights: Any, head: Any, opset: int | None, target: str, block_size: int | None
) -> None:
    recipe = Recipe(
        base="b", output="o", targets=[target], opset=opset,
        quantize={"weights": weights, "head": head},
    )  # fmt: skip
    found = _with_int8_blocks(recipe).quantize
    assert found is not None
    assert found.block_size == block_size
    chosen = Recipe(
        base="b", output="o", targets=[target], opset=opset,
        quantize={"weights": weights, "head": head, "block_size": 64},
    )  # fmt: skip
    assert _with_int8_blocks(chosen).quantize == chosen.quantize


def test_int8_with_a_scale_for_each_output_is_a_choice_and_int4_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = QuantizeSpec(weights="int8", block_size="all")
    assert choice_of(with_int8_blocks(spec)).block_size is None
    arguments = ["--base", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]
    flags = ["--quantize", "int4", "--quantize-block-size", "all"]
    result = call(capsys, "merge-and-build", *arguments, *flags)
    assert (result.code, "int4 weights share scales in blocks" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("quantize", "target", "code"),
    [
        ("{weights: int4, method: signed}", "jetson-thor", 4),
        ("{weights: int8, head: int4, method: signed}", "jetson-thor", 4),
        ("{weights: int8, method: signed}", "jetson-thor", 3),
        ("{weights: int4, method: search}", "jetson-thor", 3),
        ("{weights: int4, method: signed}", "onnxruntime-cpu", 3),
        ("{weights: int4, method: signed}", "rtx", 3),
        ("{weights: int4, method: other}", "onnxruntime-cpu", 2),
    ],
)
def test_negative_scales_are_refused_where_tensorrt_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quantize: str, target: str, code: int
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {tmp_path}/absent\nadapters: [{{name: one, source: {tmp_path}/absent}}]\n"
        f"output: {tmp_path}/out\ntargets: [{target}]\nquantize: {quantize}\n"
    )
    result = call(capsys, "merge-and-build", str(recipe))
    assert result.code == code, result.err
    if code == 4:
        assert "method 'signed' gives negative scales" in result.err
        assert "method: search" in result.err


def test_a_recipe_has_every_method() -> None:
    field = QuantizeSpec.model_fields["method"]
    assert set(get_args(field.annotation)) == set(METHODS)
    assert field.default == DEFAULT_METHOD
