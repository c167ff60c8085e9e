"""``modules_to_save`` against the tensors, with what PEFT makes of the same files as the oracle."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lora_export.adapters.formats.peft import read_peft
from lora_export.adapters.resolve import resolve
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.parameters import Parameter
from tests.helpers.peft_files import WRAPPER, pair, write_peft

if TYPE_CHECKING:
    from pathlib import Path


class Net(torch.nn.Module):
    """A layer, and a head of two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.classifier = torch.nn.Sequential()
        self.classifier.dense = torch.nn.Linear(4, 4)
        self.classifier.out_proj = torch.nn.Linear(4, 2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.layer(values))
        return self.classifier.out_proj(self.classifier.dense(hidden))


PARAMETERS = [
    Parameter(name, tuple(value.shape), "float32", "Linear")
    for name, value in Net().named_parameters()
]


def trained(folder: Path, names: list[str]) -> Path:
    """Save an adapter of `layer` with copies of the modules that `names` mean."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["layer"], modules_to_save=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Net(), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter)
        model.save_pretrained(str(folder))
    return folder


def loads_in_peft(folder: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peft.PeftModel.from_pretrained(Net(), str(folder))
        except (KeyError, RuntimeError):
            return False
    return True


def read_and_resolve(folder: Path, parameters: list[Parameter] | None = None) -> Any:
    adapter = read_peft(folder, name="a", source="a")
    return resolve(adapter, parameters or PARAMETERS, prefix="")


@pytest.mark.parametrize(
    "names", [["classifier", "classifier.dense"], ["dense", "classifier"], ["fier", "out_proj"]]
)
def test_a_module_within_a_saved_module_is_refused(names: list[str], tmp_path: Path) -> None:
    folder = trained(tmp_path, names)
    assert not loads_in_peft(folder)
    with pytest.raises(UnsupportedError, match=r"saves 'classifier\.\w+' within 'classifier'"):
        read_and_resolve(folder)


@pytest.mark.parametrize("names", [["classifier"], ["dense", "out_proj"], ["norm"], ["proj"]])
def test_modules_apart_are_taken(names: list[str], tmp_path: Path) -> None:
    folder = trained(tmp_path, names)
    assert loads_in_peft(folder)
    resolved = read_and_resolve(folder)
    assert resolved.applied_count == resolved.adapter.tensor_count


@pytest.mark.parametrize("gone", ["norm", "classifier"])
def test_a_saved_module_that_the_file_lacks_is_named(gone: str, tmp_path: Path) -> None:
    folder = trained(tmp_path, ["norm", "classifier"])
    path = folder / "adapter_model.safetensors"
    kept = {key: value for key, value in load_file(path).items() if f".{gone}." not in key}
    save_file(kept, path)
    assert not loads_in_peft(folder)
    with pytest.raises(AdapterError, match=f"has no tensor of '{gone}'"):
        read_and_resolve(folder)
    config = folder / "adapter_config.json"
    table = json.loads(config.read_text())
    table["modules_to_save"].remove(gone)
    config.write_text(json.dumps(table))
    assert loads_in_peft(folder)
    assert read_and_resolve(folder).applied_count == len(kept)


def test_names_that_the_model_does_not_have_say_nothing(tmp_path: Path) -> None:
    """PEFT lists ``classifier`` and ``score`` for every classifier."""
    folder = trained(tmp_path / "a", ["classifier", "score"])
    assert loads_in_peft(folder)
    read_and_resolve(folder)
    other = [Parameter("score.weight", (2, 4), "float32", "Linear"), *PARAMETERS]
    read_and_resolve(folder, other)
    bare = write_peft(tmp_path / "b", pair("layer", 4, 4), modules_to_save=["lm_head"])
    read_and_resolve(bare)


def test_a_whole_path_may_have_the_name_of_the_model(tmp_path: Path) -> None:
    folder = trained(tmp_path, ["classifier.dense"])
    config = folder / "adapter_config.json"
    table = json.loads(config.read_text())
    table["modules_to_save"] = ["model.classifier.dense"]
    config.write_text(json.dumps(table))
    resolved = read_and_resolve(folder)
    assert resolved.applied_count == resolved.adapter.tensor_count


def test_a_position_embedding_of_its_own_kind_is_refused(tmp_path: Path) -> None:
    """BART's and OPT's ``embed_positions`` add an offset, which PEFT's layer does not see."""
    module = "model.decoder.embed_positions"
    key = f"{WRAPPER}{module}"
    values = np.ones((2, 9), np.float32), np.ones((4, 2), np.float32)
    factors = {
        f"{key}.lora_embedding_{side}": each for side, each in zip("AB", values, strict=True)
    }
    rows = {f"{key}.token_adapter.trainable_tokens_delta": np.ones((2, 4), np.float32)}
    settings = {"target_modules": ["embed_positions"]}
    for number, (tensors, more) in enumerate(
        ((factors, settings), (rows, {"trainable_token_indices": {"embed_positions": [1, 2]}}))
    ):
        folder = write_peft(tmp_path / str(number), tensors, **more)
        with pytest.raises(UnsupportedError, match=f"changes '{module}'"):
            read_peft(folder, name="a", source="a")
    whole = {f"{key}.weight": np.ones((9, 4), np.float32)}
    folder = write_peft(tmp_path / "whole", whole, modules_to_save=["embed_positions"])
    assert read_peft(folder, name="a", source="a").saved[0].parameter == f"{module}.weight"


def test_a_convolution_with_groups_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential()
    net.conv = torch.nn.Conv1d(4, 4, 3, groups=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["conv"]))
        model.save_pretrained(str(tmp_path))
        with pytest.raises(NotImplementedError, match="groups"):
            model.merge_and_unload()
    with pytest.raises(UnsupportedError, match="'conv' of adapter 'a' is a convolution with 2"):
        read_peft(tmp_path, name="a", source="a")


def test_a_magnitude_that_is_saved_twice_is_one(tmp_path: Path) -> None:
    """PEFT writes that of an embedding under two keys, with ``save_embedding_layers``."""
    key = f"{WRAPPER}layer.lora_magnitude_vector"
    ones = np.ones(4, np.float32)
    tensors = {**pair("layer", 4, 4), key: ones, f"{key}.weight": ones}
    adapter = read_peft(write_peft(tmp_path / "a", tensors, use_dora=True), name="a", source="a")
    assert adapter.tensor_count == len(tensors)
    tensors[f"{key}.weight"] = 2 * ones
    with pytest.raises(AdapterError, match="two tensors for magnitude_vector of 'layer'"):
        read_peft(write_peft(tmp_path / "b", tensors, use_dora=True), name="a", source="a")
