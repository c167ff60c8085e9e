"""merge-and-build of adapters that change tied weights: verified against unmerged PEFT."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lora_export import AdapterSpec, Recipe, add, merge_and_build
from lora_export.commands.recipe import LatencySpec, VerifySpec
from lora_export.core.errors import ParityError, UnsupportedError
from lora_export.core.manifest import MANIFEST_NAME
from lora_export.runtime import open_export
from tests.cli.running import call
from tests.helpers.foreign import export_tiny
from tests.helpers.tied import FAMILIES, GEMMA3, distance, train, unmerged

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {"trainable_token_indices": [3, 5]}


def build(base: Path, adapter: Path, output: Path, **settings: Any) -> None:
    """Build a graph with an adapter merged in, unverified."""
    recipe = Recipe(
        base=str(base),
        adapters=[AdapterSpec(name="first", source=str(adapter))],
        output=str(output),
        **settings,
        verify=VerifySpec(enabled=False),
        latency=LatencySpec(enabled=False),
    )
    merge_and_build(recipe)


def logits(output: Path) -> torch.Tensor:
    """Return what the graph with the adapter makes of fixed tokens."""
    ids = np.arange(3, 17)[None]
    values = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    with open_export(output) as session:
        feeds = {each.name: values[each.name] for each in session.inputs}
        return torch.from_numpy(session.run(feeds, adapter="first")["logits"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"target_modules": ["lm_head"], **ROWS}),
        ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3]}}),
        ("t5", {"target_modules": ["q"], "modules_to_save": ["lm_head"]}),
        ("t5", {"target_modules": ["lm_head"], **ROWS}),
        ("bert", {"target_modules": ["word_embeddings"]}),
        ("bert", {"target_modules": ["decoder"], "bias": "all"}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["predictions"]}),
        ("bert", {"target_modules": ["query"], **ROWS}),
        ("bart", {"target_modules": ["decoder.embed_tokens"]}),
        ("marian", {"target_modules": ["q_proj"],
                    "trainable_token_indices": {"embed_tokens": [3, 5]}}),
    ],
)  # fmt: skip
def test_export_is_untied_and_verified(name, settings, tmp_path: Path, capsys) -> None:
    family = FAMILIES[name]
    family.base().save_pretrained(tmp_path / "base")
    train(family, tmp_path / "base", tmp_path / "a", **settings)
    result = call(
        capsys, "merge-and-build", "--base", tmp_path / "base", "--adapter", f"x={tmp_path / 'a'}",
        "--out", tmp_path / "out", "--no-latency",
    )  # fmt: skip
    assert result.code == 0, result.message
    assert "parity of x: pass" in result.out
    assert "does not read" not in result.err


@pytest.mark.slow
def test_vision_language_model_is_untied_in_both_sections(tmp_path: Path, capsys) -> None:
    family = GEMMA3
    family.base().save_pretrained(tmp_path / "base")
    train(family, tmp_path / "base", tmp_path / "a", target_modules=[family.embedding])
    result = call(
        capsys, "merge-and-build", "--base", tmp_path / "base", "--adapter", f"x={tmp_path / 'a'}",
        "--out", tmp_path / "out", "--no-latency", "--task", "text-generation",
    )  # fmt: skip
    assert result.code == 0, result.message
    assert "parity of x: pass" in result.out
    config = json.loads((tmp_path / "out" / "hf" / "config.json").read_text("utf-8"))
    assert config["tie_word_embeddings"] is False
    assert config["text_config"]["tie_word_embeddings"] is False


@pytest.mark.slow
def test_change_to_a_name_that_the_model_never_reads_is_left_out(tmp_path: Path, capsys) -> None:
    family = FAMILIES["t5"]
    base = family.base()
    base.save_pretrained(tmp_path / "base")
    expected = train(family, tmp_path / "base", tmp_path / "a", target_modules=["shared"])
    assert torch.equal(expected, family.logits(base))
    train(family, tmp_path / "base", tmp_path / "b", target_modules=["shared", "q"])
    result = call(
        capsys, "merge-and-build", "--base", tmp_path / "base", "--no-latency", "--out",
        tmp_path / "out", *(f"--adapter={name}={tmp_path / name}" for name in "ab"),
    )  # fmt: skip
    assert result.code == ParityError.exit_code  # `a` has no effect at all
    assert "'shared.weight', which the graph does not read" in result.err
    assert "parity of a: fail" in result.out
    assert "no measurable effect" in result.out
    assert "parity of b: pass" in result.out


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tied base and an export of it that an adapter has untied."""
    folder = tmp_path_factory.mktemp("untied")
    family = FAMILIES["llama"]
    family.base().save_pretrained(folder / "base")
    train(family, folder / "base", folder / "first", target_modules=["embed_tokens"])
    build(folder / "base", folder / "first", folder / "out", cache=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], **ROWS},
        {"target_modules": ["lm_head"], **ROWS},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_adapter_added_to_an_untied_export_changes_what_peft_changes(
    settings, recorded, untied: Path, tmp_path: Path
) -> None:
    family = FAMILIES["llama"]
    expected = train(family, untied / "base", tmp_path / "a", **settings)
    shutil.copytree(untied / "out", tmp_path / "out")
    if not recorded:  # as earlier versions wrote it
        manifest = tmp_path / "out" / MANIFEST_NAME
        table = json.loads(manifest.read_text("utf-8"))
        assert table["base"].pop("ties")
        manifest.write_text(json.dumps(table), "utf-8")
    ids = np.arange(3, 17)[None]
    positions = np.arange(ids.shape[1])[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    add(tmp_path / "out", [AdapterSpec(name="added", source=str(tmp_path / "a"))])
    with open_export(tmp_path / "out", adapters={"loaded": tmp_path / "a"}) as session:
        for name in ("added", "loaded"):
            logits = session.run(feeds, adapter=name)["logits"]
            assert distance(torch.from_numpy(logits), expected) < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bias", "rows"),
    [
        ("bert", "cls.predictions.bias", "all"),
        ("bert", "cls.predictions.bias", "head"),
        ("electra", "generator_lm_head.bias", "embedding"),
    ],
)
def test_rows_of_a_head_whose_bias_peft_leaves_out_are_refused(
    name, bias, rows, tmp_path: Path
) -> None:
    """PEFT's unmerged model computes what it would with a bias of zero, and that can be built."""
    family = FAMILIES[name]
    model = family.base()
    model.save_pretrained(tmp_path / "zero")
    with torch.no_grad():
        model.get_parameter(bias).add_(0.3)
    model.save_pretrained(tmp_path / "base")
    module = {"embedding": family.embedding, "head": family.head}.get(rows)
    indices = [3, 5] if module is None else {module: [3, 5]}
    settings = {"target_modules": [family.inner], "trainable_token_indices": indices}
    expected = train(family, tmp_path / "base", tmp_path / "rows", **settings)
    assert distance(expected, unmerged(family, tmp_path / "zero", tmp_path / "rows")) < 1e-6
    plain = train(family, tmp_path / "base", tmp_path / "plain", target_modules=[family.inner])
    build(tmp_path / "zero", tmp_path / "rows", tmp_path / "of zero")
    assert distance(logits(tmp_path / "of zero"), expected) < 1e-5
    with pytest.raises(UnsupportedError, match="whose bias"):
        build(tmp_path / "base", tmp_path / "rows", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    build(tmp_path / "base", tmp_path / "plain", tmp_path / "out")
    assert distance(logits(tmp_path / "out"), plain) < 1e-5
    if rows == "head":
        return  # the export holds one weight for both names
    for base in (None, tmp_path / "base"):
        with pytest.raises(UnsupportedError, match="whose bias"):
            add(tmp_path / "out", [AdapterSpec(name="x", source=str(tmp_path / "rows"))], base=base)
    with pytest.raises(UnsupportedError, match="whose bias"):
        open_export(tmp_path / "out", adapters={"x": tmp_path / "rows"})


@pytest.mark.slow
def test_rows_of_a_graph_of_your_own_reach_the_head_or_are_refused(tmp_path: Path) -> None:
    """Constant folding leaves the head a transpose of the embedding, which would keep its rows."""
    family = FAMILIES["albert"]
    model = family.base()
    settings = {"target_modules": ["query"], **ROWS}
    for name, bias in (("zero", 0.0), ("base", 0.3)):
        with torch.no_grad():
            model.get_parameter("predictions.bias").add_(bias)
        model.save_pretrained(tmp_path / name)
        for folded in (True, False):
            graph = tmp_path / f"{name} {folded}.onnx"
            export_tiny(tmp_path / name, graph, "fill-mask", dynamo=False, folded=folded)
    expected = train(family, tmp_path / "zero", tmp_path / "rows", **settings)
    rows, folded = tmp_path / "rows", str(tmp_path / "zero True.onnx")
    build(tmp_path / "zero", rows, tmp_path / "of zero", graph=str(tmp_path / "zero False.onnx"))
    assert distance(logits(tmp_path / "of zero"), expected) < 1e-5
    with pytest.raises(UnsupportedError, match="a copy"):
        build(tmp_path / "zero", rows, tmp_path / "out", graph=folded)
    with pytest.raises(UnsupportedError, match="whose bias"):
        build(tmp_path / "base", rows, tmp_path / "out", graph=str(tmp_path / "base False.onnx"))

    train(family, tmp_path / "zero", tmp_path / "plain", target_modules=["query"])
    build(tmp_path / "zero", tmp_path / "plain", tmp_path / "out", graph=folded)
    with pytest.raises(UnsupportedError, match="a copy"):
        add(tmp_path / "out", [AdapterSpec(name="x", source=str(rows))])
