"""A network with a layer of each kind, and adapters of each method for it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import torch
from transformers.pytorch_utils import Conv1D

from lora_export.adapters.formats.peft import read_peft
from lora_export.adapters.resolve import resolve
from lora_export.core.dtypes import DTYPES
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import MemoryTensor
from lora_export.weights.stream import merged_entry

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    "tokens": (
        "TrainableTokensConfig",
        {"token_indices": [7, 0, 3], "init_weights": False, "target_modules": ["embedding"]},
    ),
}
"""Adapters that are merged without torch: the class of PEFT's config, and its settings."""

PEFT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamss": ("AdamssConfig", {"r": 3, "num_subspaces": 2, "target_modules": ["bare"]}),
    "c3a": ("C3AConfig", {"block_size": 2, "target_modules": LINEAR}),
    "deft": ("DeftConfig", {"r": 2, "target_modules": [*LINEAR, "conv1d"]}),
    "delora": ("DeloraConfig", {"r": 2, "rank_pattern": {"wide": 3}, "target_modules": LINEAR}),
    "gralora": ("GraloraConfig", {"r": 4, "gralora_k": 2, "target_modules": LINEAR}),
    "hira": ("HiraConfig", {"r": 2, "target_modules": [*LINEAR, "conv1d", "embedding", "conv2d"]}),
    "miss": ("MissConfig", {"r": 2, "target_modules": LINEAR}),
    "bone": ("MissConfig", {"r": 2, "init_weights": "bat", "target_modules": ["bare"]}),
    "osf": ("OSFConfig", {"target_modules": LINEAR}),
    "peanut": ("PeanutConfig", {"r": 2, "depth": 2, "target_modules": LINEAR}),
    "psoft": ("PsoftConfig", {"r": 3, "target_modules": LINEAR}),
    "pvera": ("PveraConfig", {"r": 4, "target_modules": [*LINEAR, "conv1d"]}),
    "randlora": ("RandLoraConfig", {"r": 2, "target_modules": LINEAR}),
    "randlora-narrow": ("RandLoraConfig", {"r": 2, "target_modules": ["conv1d", "bare"]}),
    "road": ("RoadConfig", {"group_size": 4, "target_modules": LINEAR}),
    "shira": ("ShiraConfig", {"r": 1, "target_modules": LINEAR}),
    "supertuning": ("SupertuningConfig", {"sparsity": 0.7, "target_modules": LINEAR}),
    "tinylora": ("TinyLoraConfig", {"r": 2, "u": 4, "weight_tying": 1.0, "target_modules": LINEAR}),
    "unilora": (
        "UniLoraConfig",
        {"r": 2, "theta_d_length": 32, "save_indices": True, "target_modules": LINEAR},
    ),
    "vblora": (
        "VBLoRAConfig",
        {"r": 2, "num_vectors": 8, "vector_length": 2, "target_modules": LINEAR},
    ),
    "waveft": ("WaveFTConfig", {"n_frequency": 11, "target_modules": LINEAR}),
}
"""Adapters that PEFT merges."""


class Net(torch.nn.Module):
    """One module of each kind that some method is applied to."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.linear = torch.nn.Linear(6, 8)
        self.bare = torch.nn.Linear(8, 8, bias=False)
        self.wide = torch.nn.Linear(8, 12)
        self.conv1d = Conv1D(10, 12)
        self.conv2d = torch.nn.Conv2d(10, 8, (3, 2), padding=1)
        self.square = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = torch.nn.Conv2d(8, 6, 3, groups=2, padding=1)
        self.point = torch.nn.Conv2d(6, 4, 1)
        self.line = torch.nn.Conv1d(4, 6, 3, padding=1)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.bare(self.linear(self.norm(self.embedding(ids)))))
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
    """Return the base's values with an adapter merged into them."""
    rows = []
    for name, value in base.named_parameters():
        kind = type(base.get_submodule(name.rpartition(".")[0])).__name__
        swap = transposed and value.ndim == 2
        rows.append(Parameter(name, tuple(value.shape), "float32", kind, swap))
    return merged_into(base, folder, rows)


def merged_into(
    base: torch.nn.Module, folder: Path, parameters: Sequence[Parameter]
) -> dict[str, torch.Tensor]:
    """Return the values of a module with an adapter merged into its `parameters`."""
    adapter = read_peft(folder, name="a", source=str(folder))
    resolved = resolve(adapter, parameters, prefix="")
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
