"""loralib's format against loralib 0.1.2 itself: what a merged layer's weight has gained."""

from __future__ import annotations

import loralib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.tensors import read_all
from tests.helpers.formats import deltas, factors, write_tensors


def layer(kind=loralib.Linear, *sizes, seed=0, **settings):
    torch.manual_seed(seed)
    made = kind(*(sizes or (6, 12)), r=2, lora_alpha=5, **settings).double()
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return made


def gained(made):
    """Return W − W0 of a layer, which loralib merges on ``eval()``."""
    made.train()  # returns nothing in loralib 0.1.2
    before = made.weight.detach().clone()
    made.train(mode=False)
    after = made.weight.detach().clone()
    made.train()
    return (after - before).numpy()


def save(path, model, *, full=False, **settings):
    state = model.state_dict() if full else loralib.lora_state_dict(model, **settings)
    state = {k: v.detach().contiguous() for k, v in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def read(path, **options):
    options = {"alpha": 5, **options}
    return read_adapter(path, name="x", source="here", **options)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".ckpt"])
def test_linear_is_what_loralib_merges(tmp_path, suffix):
    model = torch.nn.ModuleDict({"a": layer(), "b": layer(seed=1)})
    adapter = read(save(tmp_path / f"lora{suffix}", model))
    assert adapter.format == "loralib"
    found = deltas(adapter)
    assert set(found) == {"a", "b"}
    for name, made in model.items():
        np.testing.assert_allclose(found[name], gained(made), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "enable",
    [(True, False, True), (True, True, True), (False, True), (False, True, False, True, True)],
)
def test_merged_linear_is_the_grouped_convolution(tmp_path, enable):
    model = torch.nn.ModuleDict({"qkv": layer(loralib.MergedLinear, 6, 60, enable_lora=[*enable])})
    path = save(tmp_path / "lora.safetensors", model)
    adapter = read(path, enable_lora=enable)
    np.testing.assert_allclose(deltas(adapter)["qkv"], gained(model["qkv"]), rtol=1e-12, atol=1e-14)
    assert adapter.tensor_count == 2


def test_a_layer_of_fan_in_fan_out_has_the_update_of_its_forward(tmp_path):
    made = layer(loralib.MergedLinear, 6, 12, enable_lora=[True, True, False], fan_in_fan_out=True)
    path = save(tmp_path / "lora.safetensors", torch.nn.ModuleDict({"qkv": made}))
    found = deltas(read(path, enable_lora=(True, True, False)))["qkv"]
    inputs = torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        effect = made(inputs) - torch.nn.functional.linear(inputs, made.weight.T, made.bias)
    np.testing.assert_allclose(inputs.numpy() @ found.T, effect.numpy(), rtol=1e-10, atol=1e-12)


def test_merged_and_plain_layers_mix(tmp_path):
    model = torch.nn.ModuleDict(
        {"qkv": layer(loralib.MergedLinear, 6, 12, enable_lora=[True, False, True]), "o": layer()}
    )
    found = deltas(read(save(tmp_path / "x.pt", model), enable_lora=(True, False, True)))
    for name, made in model.items():
        np.testing.assert_allclose(found[name], gained(made), rtol=1e-12, atol=1e-14)


def test_an_embedding_is_told_by_its_name(tmp_path):
    made = layer(loralib.Embedding, 9, 4)
    path = save(tmp_path / "x.pt", torch.nn.ModuleDict({"wte": made}))
    (update,) = read(path).low_rank
    assert update.embedding
    np.testing.assert_allclose(deltas(read(path))["wte"].T, gained(made), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_trained_biases_come_whole(tmp_path, bias):
    model = torch.nn.ModuleDict({"a": layer(), "norm": torch.nn.LayerNorm(4)})
    adapter = read(save(tmp_path / "x.pt", model, bias=bias))
    expected = {"none": set(), "all": {"a.bias", "norm.bias"}, "lora_only": {"a.bias"}}[bias]
    assert {each.parameter for each in adapter.saved} == expected


def test_a_full_checkpoint_leaves_the_adapted_matrices_to_the_base(tmp_path):
    model = torch.nn.ModuleDict({"a": layer(), "head": torch.nn.Linear(4, 3)})
    model["a"].register_buffer("steps", torch.arange(3))
    for state in ("train", "eval"):
        adapter = read(save(tmp_path / f"{state}.pt", getattr(model, state)(), full=True))
        np.testing.assert_allclose(deltas(adapter)["a"], gained(model["a"]), rtol=1e-12)
        assert {each.parameter for each in adapter.saved} == {"a.bias", "head.weight", "head.bias"}
        assert set(adapter.repeated) == {"a.weight", "a.steps"}
        assert adapter.tensor_count == 7
        head = next(each for each in adapter.saved if each.parameter == "head.weight")
        np.testing.assert_array_equal(read_all(head.tensor), model["head"].weight.detach())


def test_alpha_is_asked_for(tmp_path):
    path = save(tmp_path / "x.pt", torch.nn.ModuleDict({"a": layer()}))
    with pytest.raises(AdapterError, match="does not record alpha") as error:
        read(path, alpha=None)
    assert "--alpha" in str(error.value)
    with pytest.raises(UsageError, match="not a finite number"):
        read(path, alpha=float("nan"))


def test_enable_lora_is_asked_for_and_must_fit(tmp_path):
    model = torch.nn.ModuleDict(
        {"qkv": layer(loralib.MergedLinear, 6, 12, enable_lora=[True, False, True])}
    )
    path = save(tmp_path / "x.pt", model)
    with pytest.raises(UsageError, match="2 adapted blocks") as error:
        read(path)
    assert "--enable-lora true,false,true" in str(error.value)
    with pytest.raises(UsageError, match="marks 3"):
        read(path, enable_lora=(True, True, True))
    plain = save(tmp_path / "y.pt", torch.nn.ModuleDict({"a": layer()}))
    with pytest.raises(UsageError, match="no MergedLinear"):
        read(plain, enable_lora=(True, False, True))


def test_one_saved_merged_is_not_recognised(tmp_path):
    path = save(tmp_path / "x.pt", torch.nn.Linear(3, 2), full=True)
    with pytest.raises(AdapterError, match="no known adapter format") as error:
        read(path)
    assert "A merged checkpoint" in str(error.value)


def test_what_cannot_be_read_is_named(tmp_path):
    a, b = factors(4, 6)
    with pytest.raises(AdapterError, match=r"'m' .* has only lora_A"):
        read(write_tensors(tmp_path / "half.safetensors", {"m.lora_A": a}))
    with pytest.raises(AdapterError, match="do not share a rank"):
        read(write_tensors(tmp_path / "odd.safetensors", {"m.lora_A": a[:1], "m.lora_B": b}))
    mixed = {"m.lora_A": a, "m.lora_B": b, "n.lora_A.weight": a}
    with pytest.raises(UnsupportedError, match=r"n\.lora_A\.weight"):
        read(write_tensors(tmp_path / "mixed.safetensors", mixed))
    convolution = torch.nn.ModuleDict({"c": loralib.Conv2d(2, 3, 3, r=2, lora_alpha=5)})
    path = save(tmp_path / "conv.pt", convolution, full=True)
    with pytest.raises(UnsupportedError, match="convolution"):
        read(path)
