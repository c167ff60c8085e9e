"""Checkpoints with sentence-transformers' modules, and its formulae in torch and float64."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FLAGS", "pooled", "save_sentences"]

FLAGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
         "lasttoken")  # fmt: skip
PACKAGE = "sentence_transformers.models."


def save_sentences(
    base: Path, folder: Path, *flags: str, dense: int = 0, normalize: bool = True, **config: Any
) -> Path:
    """Copy `base` to `folder` with a pooling by `flags`; `dense` is the width of a dense layer."""
    shutil.copytree(base, folder)
    width = json.loads((base / "config.json").read_text())["hidden_size"]
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    table = {f"pooling_mode_{flag}": flag in flags for flag in FLAGS}
    _write(folder / "1_Pooling", {"word_embedding_dimension": width, **table, **config})
    if dense:
        modules.append(("2_Dense", "Dense"))
        wide = width * len(flags)
        tanh = "torch.nn.modules.activation.Tanh"
        _write(folder / "2_Dense", {"in_features": wide, "out_features": dense, "bias": True,
                                    "activation_function": tanh})  # fmt: skip
        save_file({"linear.weight": torch.randn(dense, wide) * 0.1,
                   "linear.bias": torch.randn(dense)},
                  folder / "2_Dense" / "model.safetensors")  # fmt: skip
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    rows = [
        {"idx": at, "name": str(at), "path": path, "type": PACKAGE + kind}
        for at, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    return folder


def _write(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))


def pooled(flag: str, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return one pooling ``[batch, hidden]`` as sentence-transformers computes it, in float64."""
    h, m = states.double(), mask.double().unsqueeze(-1)
    if flag == "cls_token":
        return h[:, 0]
    if flag == "max_tokens":
        return h.masked_fill(m == 0, -1e9).max(dim=1).values
    if flag == "lasttoken":
        return torch.stack(
            [row[int(own.nonzero().max())] for row, own in zip(h, mask, strict=True)]
        )
    if flag == "weightedmean_tokens":
        m = m * torch.arange(1, mask.shape[1] + 1).double()[None, :, None]
    count = m.sum(dim=1).clamp(min=1e-9)
    return (h * m).sum(dim=1) / (count.sqrt() if flag == "mean_sqrt_len_tokens" else count)
