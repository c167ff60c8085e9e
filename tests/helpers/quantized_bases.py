"""Quantized checkpoints for tests: those that libraries wrote, and small ones in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES
from lora_export.core.safetensors_file import encode_header, read_header
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = [
    "ADAPTER",
    "LLAMA_NF4",
    "expected_values",
    "save_quantized",
    "stored_parts",
    "write_base",
]

_FOLDER: Final = Path(__file__).parents[1] / "data" / "quantized"
LLAMA_NF4: Final = _FOLDER / "llama-nf4"
ADAPTER: Final = _FOLDER / "llama-nf4-adapter"
_EXPECTED: Final = "expected."


def _samples() -> dict[str, Array]:
    return {
        name: read_all(tensor)
        for file in ("weights.safetensors", "grouped.safetensors")
        for name, tensor in read_header(_FOLDER / file)[0].items()
    }


_SAMPLES: Final = _samples()


def expected_values() -> dict[str, Array]:
    """Return the values of each weight as the library that stored it dequantizes it."""
    return {
        name.removeprefix(_EXPECTED): values
        for name, values in _SAMPLES.items()
        if name.startswith(_EXPECTED)
    }


def stored_parts(name: str) -> dict[str, Array]:
    """Return the tensors that a weight is stored as."""
    module = name.removesuffix("weight")
    return {key: values for key, values in _SAMPLES.items() if key.startswith(module)}


def write_base(
    folder: Path,
    tensors: Mapping[str, Array],
    settings: Mapping[str, Any] | None = None,
    dtype: str = "float16",
) -> Path:
    """Write a checkpoint of these tensors, whose config says `settings` of quantization."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_type": "llama", "dtype": dtype}
    if settings is not None:
        config["quantization_config"] = dict(settings)
    (folder / "config.json").write_text(json.dumps(config))
    save_quantized(folder / "model.safetensors", tensors)
    return folder


def save_quantized(path: Path, tensors: Mapping[str, Array]) -> None:
    """Save tensors of every dtype that a base may have, FP8 too."""
    by_numpy = {row.numpy: row for row in DTYPES.values()}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    rows = [(name, by_numpy[values.dtype], values.shape) for name, values in ordered]
    header, _ = encode_header(rows, {"format": "pt"})
    body = b"".join(np.ascontiguousarray(values).tobytes() for _, values in ordered)
    path.write_bytes(header + body)
