"""The modules that a config targets, with PEFT's matching and loading as the oracle."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.targeting import require_targeted, target_rule
from lora_export.core.adapter_settings import check_settings
from lora_export.core.errors import AdapterError
from tests.cli.running import call
from tests.helpers.models import load_tiny

LLAMA = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 2, 11)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.gate_proj")
]
MODULES = [
    *LLAMA,
    "model.embed_tokens",
    "lm_head",
    "transformer.h.0.attn.c_attn",
    "transformer.h.3.mlp.c_proj",
    "roberta.encoder.layer.1.attention.self.query",
    "roberta.encoder.layer.1.attention.output.dense",
    "classifier.dense",
    "classifier.out_proj",
    "visual.blocks.0.attn.q_proj",
    "model.language_model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.experts.0.down_proj",
]
SHAPES: dict[str, dict[str, Any]] = {
    "any case": {"target_modules": "(?i).*Q_PROJ"},
    "an optional part": {"target_modules": r"(?:model\.)?layers\.\d+\.self_attn\.(q|v)_proj"},
    "a repeated group and an end": {"target_modules": r"(a+)+$"},
    "many repetitions": {"target_modules": ".*" * 40},
    "an excluded repetition": {"target_modules": ["q_proj"], "exclude_modules": "(x*)*y"},
    "a repeated group": {"target_modules": r"(?:[\w]+\.)+q_proj"},
    "several lazy parts": {
        "target_modules": r".*?(?:model|h).*?(?:layers|3).*?(?:self_attn|mlp).*?(?:q|c)_proj.*?"
    },
    "an excluded optional part": {
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": r"(?:model\.)?layers\.0\..*",
    },
    "a suffix": {"target_modules": ["q_proj"]},
    "several suffixes": {"target_modules": ["q_proj", "down_proj", "c_attn", "query"]},
    "part of a name is none": {"target_modules": ["proj", "attn"]},
    "a longer suffix": {"target_modules": ["self_attn.q_proj", "mlp.c_proj"]},
    "whole paths": {"target_modules": ["model.layers.1.self_attn.q_proj", "lm_head"]},
    "an embedding and the head": {"target_modules": ["embed_tokens", "lm_head"]},
    "an expression": {"target_modules": r".*\.(q_proj|v_proj)"},
    "an expression of part of a path": {"target_modules": r"(q_proj|v_proj)"},
    "an expression with layers": {"target_modules": r"model\.layers\.(0|1)\.mlp\.(down|gate)_proj"},
    "a lookahead": {"target_modules": r"^(?!.*visual).*(?:q_proj|v_proj)$"},
    "a part of a model": {"target_modules": r"^(model.language_model(?=\.).*\.(q_proj|k_proj))$"},
    "an excluded suffix": {"target_modules": ["q_proj"], "exclude_modules": ["0.self_attn.q_proj"]},
    "an excluded expression": {"target_modules": ["q_proj"], "exclude_modules": r".*visual.*"},
    "one layer": {"target_modules": ["q_proj", "c_attn"], "layers_to_transform": 1},
    "some layers": {"target_modules": ["q_proj", "query"], "layers_to_transform": [1, 11]},
    "named layers": {
        "target_modules": ["q_proj", "c_attn"],
        "layers_to_transform": [0],
        "layers_pattern": ["h", "layers"],
    },
    "whole paths beside layers": {
        "target_modules": ["v_proj", "lm_head", "model.layers.2.self_attn.q_proj"],
        "layers_to_transform": [0],
    },
    "no layers": {"target_modules": ["q_proj"], "layers_to_transform": []},
    "inside a saved module": {"target_modules": ["dense"], "modules_to_save": ["classifier"]},
    "parameters only": {"target_modules": None, "target_parameters": ["experts.down_proj"]},
    "many names": {"target_modules": sorted(LLAMA)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_modules_are_matched_as_peft_matches_them(shape) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    settings = SHAPES[shape]
    config = LoraConfig(**settings)
    expected = {
        module
        for module in MODULES
        if (result := check_target_module_exists(config, module))
        and not isinstance(result, _ExcludedModule)
    }
    targets = target_rule(settings, "x")
    assert targets is not None
    assert {module for module in MODULES if targets(module)} == expected


def test_nothing_is_refused_where_it_cannot_be_told() -> None:
    for settings in (
        {},
        {"target_modules": "all-linear"},
        {"target_modules": "All-Linear"},
    ):
        assert target_rule(settings, "x") is None, settings
        require_targeted(MODULES, settings, "x")


def test_an_expert_may_be_counted_as_either_release_of_peft_does() -> None:
    module = "model.layers.1.mlp.experts.0.down_proj"
    for layer, expected in ((0, True), (1, True), (2, False)):
        targets = target_rule(
            {"target_modules": ["down_proj"], "layers_to_transform": [layer]}, "x"
        )
        assert targets is not None
        assert targets(module) is expected


def test_a_tie_that_the_config_asks_for_is_targeted() -> None:
    config = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    require_targeted(["model.embed_tokens", "lm_head"], config, "x")
    with pytest.raises(AdapterError, match="q_proj"):
        require_targeted(["model.layers.0.self_attn.q_proj"], config, "x")


def test_a_file_may_lack_the_name_of_the_model() -> None:
    config = {"target_modules": ["model.layers.0.self_attn.q_proj"]}
    require_targeted(["layers.0.self_attn.q_proj"], config, "x")
    with pytest.raises(AdapterError, match=r"layers\.1"):
        require_targeted(["layers.1.self_attn.q_proj"], config, "x")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": 1.5},
        {"target_modules": [None]},
        {"target_modules": "(["},
        {"target_modules": ["q_proj"], "exclude_modules": 3},
        {"target_modules": ["q_proj"], "modules_to_save": 5},
        {"target_modules": ["q_proj"], "layers_to_transform": ["a"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": [1]},
    ],
)
def test_settings_of_the_wrong_type_are_damage(settings) -> None:
    def read() -> None:
        check_settings(settings, "x")
        require_targeted(["q_proj"], settings, "x")

    with pytest.raises(AdapterError, match="x"):
        read()


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "fewer names": {"target_modules": ["q_proj"]},
    "an expression": {"target_modules": r".*layers\.0\..*q_proj"},
    "excluded": {"exclude_modules": ["v_proj"]},
    "one layer": {"layers_to_transform": [1]},
    "saved whole": {"modules_to_save": ["self_attn"]},
    "another module": {"target_modules": ["down_proj"]},
}


@pytest.fixture(scope="module")
def contradicting(tiny, tmp_path_factory):
    """An adapter of q and v; returns a copy whose config says something else."""
    base = tiny.base("llama", "text-generation")
    adapter = tiny.adapter(
        base, task="text-generation", target_modules=["q_proj", "v_proj", "o_proj"]
    )
    root = tmp_path_factory.mktemp("contradicting")

    def make(name: str):
        folder = shutil.copytree(adapter, root / name.replace(" ", "-"), dirs_exist_ok=True)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **CONTRADICTIONS[name]}))
        return base, folder

    return make


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_peft_would_leave_out_is_refused_by_name(name, contradicting) -> None:
    import peft

    base, folder = contradicting(name)
    stored = {
        key.removeprefix("base_model.model.").rpartition(".lora_A")[0]
        for key in load_file(folder / "adapter_model.safetensors")
        if ".lora_A" in key
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = peft.PeftModel.from_pretrained(load_tiny(base, "text-generation"), str(folder))
            loaded = {
                key.removeprefix("base_model.model.")
                for key, module in model.named_modules()
                if "default" in (getattr(module, "lora_A", None) or ())
            }
        except (KeyError, ValueError):  # nothing is targeted, or a saved module has no tensors
            loaded = set()
    lost = sorted(stored - loaded)
    assert lost
    with pytest.raises(AdapterError, match=rf"updates of \d+ module.*{lost[0]}"):
        read_adapter(folder, name="x", source="x")


def test_every_command_refuses_it(contradicting, tmp_path, capsys) -> None:
    base, folder = contradicting("fewer names")
    given = ("--adapter", f"x={folder}")
    for command in (
        ("merge", "--base", base, *given, "--out", tmp_path / "merged"),
        ("merge-and-build", "--base", base, *given, "--output", tmp_path / "built"),
        ("adapter", "convert", folder, "--to", "peft", "--out", tmp_path / "converted"),
        ("inspect", folder),
        ("inspect", base, folder),
    ):
        result = call(capsys, *command)
        assert result.code == 3, (command, result.err)
        assert "its config does not target" in result.err
        assert "'model.layers.0.self_attn.o_proj'" in result.err
    assert not list(tmp_path.iterdir())


def test_a_file_without_the_models_own_name_meets_an_expression(tiny, tmp_path) -> None:
    base = tiny.base("llama", "text-generation")
    adapter = tiny.adapter(
        base, task="text-generation", target_modules=r"model\.layers\.\d\.self_attn\.q_proj"
    )
    folder = shutil.copytree(adapter, tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    tensors = {key.replace("model.model.", "model."): each for key, each in load_file(path).items()}
    save_file(tensors, path)
    assert len(read_adapter(folder, name="x", source="x").low_rank) == 2
