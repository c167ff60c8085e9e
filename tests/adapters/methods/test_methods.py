"""Every method that is merged without torch, against PEFT's own merge and unmerged forward."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from lora_export.adapters.formats.peft import read_peft
from lora_export.adapters.methods.table import METHODS
from lora_export.adapters.resolve import resolve
from lora_export.core.dtypes import DTYPES
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import MemoryTensor
from lora_export.weights import stream
from lora_export.weights.stream import merged_entry

if TYPE_CHECKING:
    from pathlib import Path

ALL = ["linear", "wide", "conv1d", "conv2d", "point", "line"]
LINEAR = ["linear", "wide"]
CONVOLUTIONS = [*LINEAR, "conv2d", "point", "line"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "loha": ("LoHaConfig", {"r": 3, "alpha": 7, "target_modules": CONVOLUTIONS}),
    "loha-effective": (
        "LoHaConfig",
        {"r": 2, "alpha": 5, "use_effective_conv2d": True, "target_modules": CONVOLUTIONS},
    ),
    "loha-patterns": (
        "LoHaConfig",
        {
            "r": 3,
            "alpha": 7,
            "rank_pattern": {"wide": 2},
            "alpha_pattern": {"linear": 1},
            "target_modules": LINEAR,
        },
    ),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": CONVOLUTIONS}),
    "lokr-full": ("LoKrConfig", {"r": 9, "alpha": 3, "target_modules": CONVOLUTIONS}),
    "lokr-both": (
        "LoKrConfig",
        {"r": 1, "alpha": 3, "decompose_both": True, "target_modules": CONVOLUTIONS},
    ),
    "lokr-factor": (
        "LoKrConfig",
        {"r": 1, "alpha": 3, "decompose_factor": 2, "target_modules": CONVOLUTIONS},
    ),
    "lokr-effective": (
        "LoKrConfig",
        {"r": 1, "alpha": 3, "use_effective_conv2d": True, "target_modules": [*LINEAR, "conv2d"]},
    ),
    "ia3": (
        "IA3Config",
        {
            "target_modules": ["linear", "wide", "conv1d", "conv2d", "point"],
            "feedforward_modules": ["wide", "point"],
        },
    ),
    "ia3-conv1d-inputs": (
        "IA3Config",
        {"target_modules": ["conv1d", "conv2d"], "feedforward_modules": ["conv1d", "conv2d"]},
    ),
    "ia3-groups": (
        "IA3Config",
        {"target_modules": ["grouped"], "feedforward_modules": ["grouped"]},
    ),
    "adalora": (
        "AdaLoraConfig",
        {
            "init_r": 3,
            "target_r": 2,
            "lora_alpha": 5,
            "total_step": 10,
            "target_modules": [*LINEAR, "conv1d", "conv2d"],
        },
    ),
    "adalora-pruned": (
        "AdaLoraConfig",
        {
            "init_r": 3,
            "target_r": 2,
            "lora_alpha": 5,
            "total_step": 10,
            "rank_pattern": {
                "linear.lora_E": [True, False, True],
                "wide.lora_E": [False, False, False],
            },
            "target_modules": LINEAR,
        },
    ),
    "vera": ("VeraConfig", {"r": 4, "target_modules": [*LINEAR, "conv1d"]}),
    "vera-seed": (
        "VeraConfig",
        {
            "r": 4,
            "save_projection": False,
            "projection_prng_key": 31,
            "target_modules": [*LINEAR, "conv1d"],
        },
    ),
    "oft": ("OFTConfig", {"oft_block_size": 2, "r": 0, "target_modules": [*LINEAR, "point"]}),
    "oft-embedding": ("OFTConfig", {"r": 2, "oft_block_size": 0, "target_modules": ["embedding"]}),
    "oft-shared": (
        "OFTConfig",
        {
            "oft_block_size": 2,
            "r": 0,
            "block_share": True,
            "use_cayley_neumann": False,
            "target_modules": ["linear", "embedding"],
        },
    ),
    "oft-constrained": (
        "OFTConfig",
        {
            "oft_block_size": 2,
            "r": 0,
            "coft": True,
            "eps": 0.3,
            "num_cayley_neumann_terms": 7,
            "target_modules": LINEAR,
        },
    ),
    "boft": ("BOFTConfig", {"boft_block_size": 2, "target_modules": [*LINEAR, "square"]}),
    "boft-count": (
        "BOFTConfig",
        {"boft_block_size": 0, "boft_block_num": 2, "target_modules": LINEAR},
    ),
    "hra": ("HRAConfig", {"r": 3, "target_modules": [*LINEAR, "square", "point"]}),
    "hra-orthogonal": ("HRAConfig", {"r": 3, "apply_GS": True, "target_modules": LINEAR}),
    "fourierft": (
        "FourierFTConfig",
        {
            "n_frequency": 17,
            "scaling": 40.0,
            "n_frequency_pattern": {"wide": 5},
            "target_modules": [*LINEAR, "conv1d"],
        },
    ),
    "ln-tuning": ("LNTuningConfig", {"target_modules": ["norm"]}),
    "beft": ("BeftConfig", {"target_modules": LINEAR}),
}


class Net(torch.nn.Module):
    """One module of each kind that some method is applied to."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.linear = torch.nn.Linear(6, 8)
        self.wide = torch.nn.Linear(8, 12)
        self.conv1d = Conv1D(10, 12)
        self.conv2d = torch.nn.Conv2d(10, 8, (3, 2), padding=1)
        self.square = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = torch.nn.Conv2d(8, 6, 3, groups=2, padding=1)
        self.point = torch.nn.Conv2d(6, 4, 1)
        self.line = torch.nn.Conv1d(4, 6, 3, padding=1)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.linear(self.norm(self.embedding(ids))))
        hidden = self.conv1d(torch.tanh(self.wide(hidden)))  # (n, t, 10)
        image = self.square(torch.tanh(self.conv2d(hidden.transpose(1, 2)[..., None])))
        image = self.point(torch.tanh(self.grouped(image)))
        scores: torch.Tensor = self.head(self.line(image.mean(3)).transpose(1, 2))
        return scores


def adapted(folder: Path, kind: str, settings: dict[str, Any]) -> tuple[Net, Any]:
    """Give every adapter tensor a value of its own; save the adapter."""
    torch.manual_seed(0)
    base = Net().eval()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    pattern = settings.get("rank_pattern") if kind == "AdaLoraConfig" else None
    given = {k: v for k, v in settings.items() if k != "rank_pattern" or pattern is None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(peft, kind)(**given)
        model = peft.get_peft_model(base, config).eval()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:
                parameter.data = parameter.data + torch.randn_like(parameter) * 0.3
        if pattern is not None:
            model.peft_config["default"].rank_pattern = pattern
        model.save_pretrained(str(folder))
        untouched = Net().eval()
        untouched.load_state_dict(state)
        if pattern is not None:  # as PEFT loads it
            copy = Net().eval()
            copy.load_state_dict(state)
            model = peft.PeftModel.from_pretrained(copy, str(folder)).eval()
    return untouched, model


def merged_by_us(base: Net, folder: Path, *, transposed: bool) -> dict[str, torch.Tensor]:
    adapter = read_peft(folder, name="a", source=str(folder))
    rows = []
    for name, value in base.named_parameters():
        kind = type(base.get_submodule(name.rpartition(".")[0])).__name__
        swap = transposed and value.ndim == 2
        rows.append(Parameter(name, tuple(value.shape), "float32", kind, swap))
    resolved = resolve(adapter, rows, prefix="")
    assert resolved.applied_count == adapter.tensor_count
    state = dict(base.state_dict())
    for update in resolved.updates:
        name = update.parameter.name
        original = MemoryTensor(name, DTYPES["float32"], state[name].numpy())
        entry = merged_entry(update, original, base_is_stored=False)
        values = np.concatenate([np.atleast_1d(block) for block in entry.blocks()])
        assert values.shape == entry.shape
        values = np.ascontiguousarray(values.T if update.parameter.transposed else values)
        state[name] = torch.from_numpy(values)
    return state


@pytest.mark.parametrize("transposed", [False, True], ids=["as-is", "transposed"])
@pytest.mark.parametrize("case", CASES)
def test_merged_weights_and_forward_are_those_of_peft(
    case: str, transposed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", 64)  # several blocks per tensor
    base, model = adapted(tmp_path / "a", *CASES[case])
    ids = torch.randint(0, 11, (5, 4))
    with torch.no_grad():
        unmerged = model(ids)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    ours = merged_by_us(base, tmp_path / "a", transposed=transposed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert any(not torch.allclose(value, before[name], rtol=0.01) for name, value in theirs.items())
    for name, value in theirs.items():
        error = torch.linalg.norm(ours[name].double() - value.double())
        assert error <= 3e-6 * torch.linalg.norm(value.double()), name
    base.load_state_dict(ours)
    with torch.no_grad():
        torch.testing.assert_close(base(ids), unmerged, rtol=1e-4, atol=1e-5)


def test_every_method_of_the_table_is_compared() -> None:
    kinds = {getattr(peft, kind)().peft_type.value for kind, _ in CASES.values()
             if kind != "AdaLoraConfig"} | {"ADALORA"}  # fmt: skip
    assert kinds == set(METHODS)
