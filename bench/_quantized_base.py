"""A checkpoint in NF4 with a doubled absmax, as bitsandbytes stores it; random codes.

    python bench/_quantized_base.py llama-7b FOLDER

Linear layers are quantized, embeddings, head and norms are float16.
"""

from __future__ import annotations

import argparse
import json
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from _architectures import MODELS, Shape

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_BLOCK: Final = 64
_NESTED: Final = 256
_CODES: Final = {"float32": "F32", "float16": "F16", "uint8": "U8"}
_STATE: Final = "quant_state.bitsandbytes__nf4"


def _parts(name: str, shape: Shape) -> dict[str, tuple[str, Shape]]:
    """Return the dtype and shape of each tensor that a parameter is stored as."""
    if not name.endswith("_proj.weight"):
        return {name: ("float16", shape)}
    blocks = -(-prod(shape) // _BLOCK)
    return {
        name: ("uint8", (prod(shape) // 2, 1)),
        f"{name}.absmax": ("uint8", (blocks,)),
        f"{name}.quant_map": ("float32", (16,)),
        f"{name}.nested_absmax": ("float32", (-(-blocks // _NESTED),)),
        f"{name}.nested_quant_map": ("float32", (256,)),
        f"{name}.{_STATE}": ("uint8", (len(_state(shape)),)),
    }


def _state(shape: Shape) -> bytes:
    table = {
        "quant_type": "nf4", "blocksize": _BLOCK, "dtype": "float16", "shape": list(shape),
        "nested_blocksize": _NESTED, "nested_dtype": "float32", "nested_offset": 0.04,
    }  # fmt: skip
    return json.dumps(table).encode()


def _values(name: str, dtype: str, shape: Shape, generator: np.random.Generator) -> Array:
    if dtype == "uint8":
        return generator.integers(0, 256, shape, np.uint8)
    if dtype == "float16":
        return (generator.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
    if name.endswith("quant_map"):
        return np.linspace(-1, 1, shape[0], dtype=np.float32)
    return np.full(shape, 0.03, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    model, folder = MODELS[arguments.model], arguments.folder
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**model.config, "dtype": "float16"}), "utf-8")
    shapes = model.tensors(model.config)
    states = {f"{name}.{_STATE}": _state(shape) for name, shape in shapes.items()}
    rows = [item for name, shape in shapes.items() for item in _parts(name, shape).items()]
    rows.sort(key=lambda row: -np.dtype(row[1][0]).itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in rows:
        end = position + prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [position, end],
        }  # fmt: skip
        position = end
    body = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(body)) + body)
        for name, (dtype, shape) in rows:
            found = states.get(name)
            stream.write(found or _values(name, dtype, shape, generator).tobytes())


if __name__ == "__main__":
    main()
