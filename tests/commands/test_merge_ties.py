"""merge of adapters that change tied weights: the result, as transformers loads it, is PEFT's."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.commands.merge import unmerge_checkpoint
from lora_export.core.errors import UnsupportedError
from tests.helpers.tied import FAMILIES, QWEN2_VL, classifier, distance, merge, train, unmerged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT = 2e-6


def config_of(folder: Path, file: str = "config.json") -> dict[str, Any]:
    return dict(json.loads((folder / file).read_text("utf-8")))


def edit_config(folder: Path, changes: dict[str, Any], file: str = "config.json") -> None:
    """Set keys of a config; None takes one out."""
    table = {**config_of(folder, file), **changes}
    kept = {key: value for key, value in table.items() if value is not None}
    (folder / file).write_text(json.dumps(kept), "utf-8")


def rename(folder: Path, new: Callable[[str], str]) -> None:
    file = folder / "model.safetensors"
    tensors = {new(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for name, family in FAMILIES.items():
        family.base().save_pretrained(folder / name)
    return {name: folder / name for name in FAMILIES}


def kinds(name: str) -> dict[str, dict[str, Any]]:
    """Return what adapters of a family change, as settings of PEFT."""
    family = FAMILIES[name]
    inner, embedding, head = [family.inner], family.embedding, family.head
    return {
        "embedding": {"target_modules": [embedding]},
        "head": {"target_modules": [head]},
        "both": {"target_modules": [embedding, head]},
        "saved head": {"target_modules": inner, "modules_to_save": [head]},
        "saved embedding": {"target_modules": inner, "modules_to_save": [embedding]},
        "rows": {"target_modules": inner, "trainable_token_indices": [3, 5]},
        "rows of the head": {"target_modules": inner, "trainable_token_indices": {head: [3, 5]}},
        "rows, head": {"target_modules": [head], "trainable_token_indices": [3, 5]},
    }


@pytest.mark.parametrize("kind", kinds("llama"))
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in {"llama", "t5"} else pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_merged_checkpoint_computes_what_unmerged_peft_does(
    name: str, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES[name]
    expected = train(family, bases[name], tmp_path / "a", **kinds(name)[kind])
    merge(bases[name], tmp_path / "a", tmp_path / "m")
    merged = family.logits(family.load(tmp_path / "m"))
    assert distance(merged, expected) < LIMIT
    assert distance(merged, family.logits(family.load(bases[name]))) > 1e-3


@pytest.mark.parametrize("name", ["albert", "bert"])
def test_trained_biases_beside_a_split_embedding_reach_both_names(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The head's bias is tied as well; once the words are untied, the model looks for both."""
    family = FAMILIES[name]
    settings = {"target_modules": [family.embedding], "bias": "all"}
    expected = train(family, bases[name], tmp_path / "a", **settings)
    merge(bases[name], tmp_path / "a", tmp_path / "m")
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT


def test_untied_base_keeps_its_tensors_apart(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    model = family.base()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    model.save_pretrained(tmp_path / "base")
    for at, kind in enumerate(("embedding", "head", "rows", "saved head")):
        folder = tmp_path / str(at)
        expected = train(family, tmp_path / "base", folder / "a", **kinds("llama")[kind])
        merge(tmp_path / "base", folder / "a", folder / "m")
        assert distance(family.logits(family.load(folder / "m")), expected) < LIMIT, kind


@pytest.mark.parametrize("kind", ["embedding", "head", "rows, head", "rows"])
@pytest.mark.parametrize(
    "keys", [("architectures",), ("tie_word_embeddings",), ("architectures", "tie_word_embeddings")]
)
def test_missing_keys_of_the_config_do_not_mean_untied(
    keys: tuple[str, ...], kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    name = "llama" if keys == ("architectures",) else "mamba"  # whose class ties by default
    family = FAMILIES[name]
    shutil.copytree(bases[name], tmp_path / "base")
    edit_config(tmp_path / "base", dict.fromkeys(keys))
    expected = train(family, tmp_path / "base", tmp_path / "a", **kinds(name)[kind])
    for task, recorded in ((None, True), (None, False), ("CAUSAL_LM", False)):
        changes = {"task_type": task} | ({} if recorded else {"auto_mapping": None})
        edit_config(tmp_path / "a", changes, file="adapter_config.json")
        merge(tmp_path / "base", tmp_path / "a", tmp_path / f"m{task}{recorded}")
        merged = family.logits(family.load(tmp_path / f"m{task}{recorded}"))
        assert distance(merged, expected) < LIMIT


def test_bare_checkpoint_gets_the_names_of_the_class_with_the_head(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES["gpt2"]
    shutil.copytree(bases["gpt2"], tmp_path / "base")
    rename(tmp_path / "base", lambda name: name.removeprefix("transformer."))
    expected = train(family, tmp_path / "base", tmp_path / "a", target_modules=["wte"])
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT
    names = load_file(tmp_path / "m" / "model.safetensors").keys()
    assert "lm_head.weight" in names
    assert all(name.startswith("transformer.") for name in names - {"lm_head.weight"})


@pytest.mark.parametrize("task_type", ["SEQ_2_SEQ_LM", None])
@pytest.mark.parametrize("name", ["bart", "marian"])
def test_checkpoint_of_the_bare_model_gets_the_head_that_its_embedding_was_tied_to(
    name: str, task_type: str | None, tmp_path: Path
) -> None:
    """The bare model ties embeddings too, but it is not the class that was trained."""
    family = FAMILIES[name]
    family.base().model.save_pretrained(tmp_path / "base")
    settings = {"target_modules": [family.embedding], "task_type": task_type}
    expected = train(family, tmp_path / "base", tmp_path / "a", **settings)
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT


def test_base_that_stores_both_sides_is_changed_on_both(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES["llama"]
    shutil.copytree(bases["llama"], tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    for kind in ("rows", "head"):
        folder = tmp_path / kind
        expected = train(family, tmp_path / "base", folder / "a", **kinds("llama")[kind])
        merge(tmp_path / "base", folder / "a", folder / "m")
        assert distance(family.logits(family.load(folder / "m")), expected) < LIMIT


def test_head_of_other_values_is_not_tied_whatever_the_config_says(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES["t5"]  # version 1.1, whose class ties always
    shutil.copytree(bases["t5"], tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = torch.randn(tensors["shared.weight"].shape)
    save_file(tensors, file, {"format": "pt"})
    edit_config(tmp_path / "base", {"tie_word_embeddings": False})
    expected = train(family, tmp_path / "base", tmp_path / "a", target_modules=["lm_head"])
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT
    assert load_file(tmp_path / "m" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("name", ["bart", "gpt2", "t5"])
def test_rows_reach_a_head_of_other_values_that_the_config_calls_tied(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """transformers keeps such a head apart; PEFT trains the same rows in it."""
    family = FAMILIES[name]
    shutil.copytree(bases[name], tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    shape = family.base().get_input_embeddings().weight.shape
    tensors["lm_head.weight"] = torch.randn(shape)
    save_file(tensors, file, {"format": "pt"})
    edit_config(tmp_path / "base", {"tie_word_embeddings": None})
    expected = train(family, tmp_path / "base", tmp_path / "a", **kinds(name)["rows"])
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT
    head = load_file(tmp_path / "m" / "model.safetensors")["lm_head.weight"]
    changed = (head != tensors["lm_head.weight"]).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3, 5]


@pytest.mark.parametrize("name", ["T5", "MT5", "Bart"])
def test_rows_stay_in_one_module_of_a_classifier_that_declares_no_ties(
    name: str, tmp_path: Path
) -> None:
    """PEFT looks for tied names only where the outermost class declares some."""
    family = classifier(name)
    family.base().save_pretrained(tmp_path / "base")
    settings = {
        "task_type": "SEQ_CLS",
        "target_modules": [family.inner],
        "trainable_token_indices": {"shared": [3, 5]},
    }
    expected = train(family, tmp_path / "base", tmp_path / "a", **settings)
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT


def test_class_whose_scale_depends_on_the_tie_keeps_its_config(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    train(FAMILIES["t5"], bases["t5"], tmp_path / "a", target_modules=["lm_head"])
    merge(bases["t5"], tmp_path / "a", tmp_path / "m")
    assert config_of(tmp_path / "m").get("tie_word_embeddings") is not False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["embedding", "rows", "inner"])
def test_base_layer_that_the_adapter_rounds_is_rounded_on_both_sides(
    kind: str, dtype: torch.dtype, bases: dict[str, Path], tmp_path: Path
) -> None:
    # PEFT loads `….base_layer.weight` into the shared weight
    family = FAMILIES["llama"]
    settings = {**kinds("llama"), "inner": {"target_modules": ["q_proj"]}}[kind]
    train(family, bases["llama"], tmp_path / "a", **settings)
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = {
        "embedding": "model.embed_tokens.base_layer.weight",
        "rows": "model.embed_tokens.token_adapter.base_layer.weight",
        "inner": "model.embed_tokens.weight",
    }[kind]
    value = family.load(bases["llama"]).get_input_embeddings().weight.detach()
    tensors[f"base_model.model.{key}"] = value.to(dtype)
    save_file(tensors, file, {"format": "pt"})
    expected = unmerged(family, bases["llama"], tmp_path / "a")
    merge(bases["llama"], tmp_path / "a", tmp_path / "m")
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT


def test_weights_that_peft_keeps_tied_are_both_changed(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES["llama"]
    for at, settings in enumerate(
        (
            {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"],
             "ensure_weight_tying": True},
            {"target_modules": ["q_proj"],
             "trainable_token_indices": {"embed_tokens": [3], "lm_head": [4]}},
        )
    ):  # fmt: skip
        folder = tmp_path / str(at)
        expected = train(family, bases["llama"], folder / "a", **settings)
        merge(bases["llama"], folder / "a", folder / "m")
        assert distance(family.logits(family.load(folder / "m")), expected) < LIMIT, settings


@pytest.mark.parametrize("apart", [False, True])
def test_rows_of_a_tied_head_that_the_config_does_not_name_are_those_of_the_embedding(
    apart: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    """`save_embedding_layers=True` saves them under both names."""
    family = FAMILIES["gemma"]
    shutil.copytree(bases["gemma"], tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    if apart:
        tensors["lm_head.weight"] = torch.randn(tensors["model.embed_tokens.weight"].shape)
        save_file(tensors, file, {"format": "pt"})
    rows = {"trainable_token_indices": {"embed_tokens": [7, 3]}, "target_modules": ["q_proj"]}
    expected = train(family, tmp_path / "base", tmp_path / "a", **rows)
    file = tmp_path / "a" / "adapter_model.safetensors"
    trained = load_file(file)
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    trained[key.replace("model.embed_tokens", "lm_head")] = trained[key].clone()
    save_file(trained, file, {"format": "pt"})
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT


def test_rows_beside_a_saved_head_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    train(family, bases["llama"], tmp_path / "a", **kinds("llama")["rows"])
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.weight"] = torch.randn(48, 16)
    save_file(tensors, file, {"format": "pt"})
    edit_config(tmp_path / "a", {"modules_to_save": ["lm_head"]}, file="adapter_config.json")
    with pytest.raises(UnsupportedError, match="PEFT cannot run that"):
        merge(bases["llama"], tmp_path / "a", tmp_path / "m")
    merge(bases["llama"], tmp_path / "a", tmp_path / "m", drop=("model.embed_tokens.weight",))


def test_vision_language_model_is_untied_in_both_sections(tmp_path: Path) -> None:
    family = QWEN2_VL
    family.base().save_pretrained(tmp_path / "base")
    for kind in ("embed_tokens", "lm_head"):
        folder = tmp_path / kind
        expected = train(family, tmp_path / "base", folder / "a", target_modules=[kind])
        merge(tmp_path / "base", folder / "a", folder / "m")
        assert distance(family.logits(family.load(folder / "m")), expected) < LIMIT, kind


def test_adapter_of_the_layers_of_an_unknown_model_type_goes_on_working(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES["llama"]
    shutil.copytree(bases["llama"], tmp_path / "base")
    expected = train(family, bases["llama"], tmp_path / "a", target_modules=["q_proj", "v_proj"])
    edit_config(tmp_path / "base", {"model_type": "nobody", "architectures": ["NobodyForCausalLM"]})
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    edit_config(tmp_path / "m", {"model_type": "llama"})
    assert distance(family.logits(family.load(tmp_path / "m")), expected) < LIMIT


@pytest.mark.parametrize("kind", ["embedding", "saved embedding", "saved head"])
def test_change_of_what_may_be_tied_is_refused_for_an_unknown_model_type(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES["llama"]
    shutil.copytree(bases["llama"], tmp_path / "base")
    train(family, bases["llama"], tmp_path / "a", **kinds("llama")[kind])
    edit_config(tmp_path / "base", {"model_type": "nobody", "architectures": ["NobodyForCausalLM"]})
    with pytest.raises(UnsupportedError, match="which may be tied") as raised:
        merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    assert "'nobody'" in raised.value.message
    if kind != "saved head":  # what the hint says helps
        edit_config(tmp_path / "base", {"tie_word_embeddings": False})
        merge(tmp_path / "base", tmp_path / "a", tmp_path / "m")


def test_base_is_written_again_from_an_untied_merge(bases: dict[str, Path], tmp_path: Path) -> None:
    train(FAMILIES["llama"], bases["llama"], tmp_path / "a", target_modules=["embed_tokens"])
    merge(bases["llama"], tmp_path / "a", tmp_path / "m")
    unmerge_checkpoint(tmp_path / "m", bases["llama"], tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == load_file(bases["llama"] / "model.safetensors").keys()


def test_rows_of_a_head_whose_bias_peft_leaves_out_are_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT 0.21 runs such a head without its bias; that of a fresh model is zero."""
    family = FAMILIES["bert"]
    shutil.copytree(bases["bert"], tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["cls.predictions.bias"] = torch.ones_like(tensors["cls.predictions.bias"])
    save_file(tensors, file, {"format": "pt"})
    for kind in ("rows", "rows of the head"):
        folder = tmp_path / kind
        train(family, tmp_path / "base", folder / "a", **kinds("bert")[kind])
        with pytest.raises(UnsupportedError, match=r"bias 'cls\.predictions\.bias'"):
            merge(tmp_path / "base", folder / "a", folder / "m")
