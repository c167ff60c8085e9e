"""Every module and variant of LoRA, merged block by block, against PEFT's own merge and forward."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from lora_export.adapters.formats.peft import read_peft
from lora_export.adapters.resolve import resolve
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.parameters import Parameter
from lora_export.weights import rows
from tests.helpers.method_cases import merged_into
from tests.helpers.peft_files import WRAPPER, pair, write_peft

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = [7, 0, 3]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"linear": 5}, "alpha_pattern": {"embedding|conv1d": 3}},
    "dora": {"use_dora": True},
    "dora-rslora": {"use_dora": True, "use_rslora": True},
    "lora-bias": {"lora_bias": True, "target_modules": ["linear"]},
    "bias-only": {"bias": "lora_only"},
    "tokens": {"trainable_token_indices": {"embedding": TOKENS}, "target_modules": ["linear"]},
    "saved": {"modules_to_save": ["head"]},
}


class Net(torch.nn.Module):
    """One module of each kind that LoRA is applied to."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.linear = torch.nn.Linear(6, 8)
        self.conv1d = Conv1D(10, 8)
        self.conv2d = torch.nn.Conv2d(10, 4, (3, 2), padding=1)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1d(torch.tanh(self.linear(self.embedding(ids))))  # (n, t, 10)
        image = self.conv2d(hidden.transpose(1, 2)[..., None])
        return self.head(image.mean((2, 3)))


def parameters_of(model: Net, *, transposed: bool) -> list[Parameter]:
    rows = []
    for name, value in model.named_parameters():
        kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
        swap = transposed and value.ndim == 2
        rows.append(Parameter(name, tuple(value.shape), "float32", kind, swap))
    return rows


def adapted(folder: Path, settings: dict[str, Any]) -> tuple[Net, Any]:
    """Train nothing, but give every adapter tensor a value of its own; save the adapter."""
    torch.manual_seed(0)
    base = Net().eval()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    targets = ["embedding", "linear", "conv1d", "conv2d"]
    config = peft.LoraConfig(r=2, lora_alpha=7, **{"target_modules": targets, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config).eval()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                grown = 1.5 if "magnitude" in name else 1.0
                parameter.data = parameter.data * grown + torch.randn_like(parameter) * 0.3
        model.save_pretrained(str(folder))
    untouched = Net().eval()
    untouched.load_state_dict(state)
    return untouched, model


@pytest.mark.parametrize("transposed", [False, True], ids=["as-is", "transposed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_weights_and_forward_are_those_of_peft(
    variant: str, transposed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 64)  # several blocks per tensor
    base, model = adapted(tmp_path / "a", VARIANTS[variant])
    ids = torch.randint(0, 11, (5, 4))
    with torch.no_grad():
        unmerged = model(ids)
    ours = merged_into(base, tmp_path / "a", parameters_of(base, transposed=transposed))
    theirs = model.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        error = torch.linalg.norm(ours[name].double() - value.double())
        assert error <= 1e-6 * torch.linalg.norm(value.double()), name
    base.load_state_dict(ours)
    with torch.no_grad():
        torch.testing.assert_close(base(ids), unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("r", "alpha", "rslora", "dora"),
    list(itertools.product((1, 3), (0.5, -4), (False, True), (False, True))),
)
def test_any_scale_of_any_variant(
    r: int, alpha: float, rslora: bool, dora: bool, tmp_path: Path
) -> None:
    settings = {"r": r, "lora_alpha": alpha, "use_rslora": rslora, "use_dora": dora}
    torch.manual_seed(1)
    base, model = adapted(tmp_path / "a", {"alpha_pattern": {"x": 1}})
    del model
    config = peft.LoraConfig(target_modules=["linear", "conv2d"], **settings)
    fresh = Net().eval()
    fresh.load_state_dict(base.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(fresh, config).eval()
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + torch.randn_like(parameter) * 0.2
        wrapped.save_pretrained(str(tmp_path / "b"))
    ours = merged_into(base, tmp_path / "b", parameters_of(base, transposed=False))
    for name, value in wrapped.merge_and_unload().state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


def read_and_resolve(folder: Path, shape: tuple[int, ...], kind: str = "Linear") -> Any:
    adapter = read_peft(folder, name="a", source=str(folder))
    rows = [
        Parameter("q.weight", shape, "float32", kind),
        Parameter("q.bias", shape[:1], "float32", kind),
    ]
    return resolve(adapter, rows, prefix="")


def test_magnitude_of_another_width_does_not_fit(tmp_path: Path) -> None:
    tensors = {**pair("q", 3, 4), f"{WRAPPER}q.lora_magnitude_vector": np.ones(5, np.float32)}
    with pytest.raises(AdapterError, match="the magnitude is \\[5\\], the outputs are 4"):
        read_and_resolve(write_peft(tmp_path, tensors, use_dora=True), (4, 3))


@pytest.mark.parametrize("use_dora", [True, False])
def test_magnitude_and_config_must_agree(use_dora: bool, tmp_path: Path) -> None:
    tensors = dict(pair("q", 3, 4))
    if not use_dora:
        tensors[f"{WRAPPER}q.lora_magnitude_vector"] = np.ones(4, np.float32)
    with pytest.raises(AdapterError, match="magnitude"):
        read_and_resolve(write_peft(tmp_path, tensors, use_dora=use_dora), (4, 3))


@pytest.mark.parametrize(
    "indices", [None, [1], [1, 1], [-1, 2], [1, "2"], {"other": [1, 2]}, {"q": 3}, 7], ids=str
)
def test_rows_that_the_config_does_not_name_are_refused(indices: Any, tmp_path: Path) -> None:
    key = f"{WRAPPER}q.token_adapter.trainable_tokens_delta"
    folder = write_peft(
        tmp_path, {key: np.ones((2, 3), np.float32)}, trainable_token_indices=indices
    )
    with pytest.raises(AdapterError):
        read_and_resolve(folder, (9, 3), "Embedding")


def test_row_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    key = f"{WRAPPER}q.token_adapter.trainable_tokens_delta"
    folder = write_peft(
        tmp_path, {key: np.ones((2, 3), np.float32)}, trainable_token_indices=[1, 9]
    )
    with pytest.raises(AdapterError, match="row 9 is replaced, the model has 9"):
        read_and_resolve(folder, (9, 3), "Embedding")


def test_bias_on_b_needs_a_bias_in_the_model(tmp_path: Path) -> None:
    tensors = {**pair("q", 3, 4), f"{WRAPPER}q.lora_B.bias": np.ones(4, np.float32)}
    adapter = read_peft(write_peft(tmp_path, tensors, lora_bias=True), name="a", source="a")
    with pytest.raises(UnsupportedError, match=r"lora_bias: true, and 1 of its modules .* 'q'"):
        resolve(adapter, [Parameter("q.weight", (4, 3), "float32", "Linear")], prefix="")
