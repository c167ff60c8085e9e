"""Checkpoints and adapters of real architectures, seeded random weights, written block by block.

Run in a process of its own, so that what it allocates does not count as anybody's peak memory:

    python bench/_checkpoints.py base roberta-base FOLDER
    python bench/_checkpoints.py adapter roberta-base FOLDER --seed 2
    python bench/_checkpoints.py base llama-7b FOLDER --shard-bytes 5000000000
"""

from __future__ import annotations

import argparse
import json
import re
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from _architectures import MODELS, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK_VALUES: Final = 1 << 22
_CODES: Final = {"float32": "F32", "float16": "F16"}
_STD: Final = 0.02
_NORM: Final = re.compile(r"(norm|ln_\w)\.weight")


def _blocks(name: str, shape: Shape, dtype: str, seed: int) -> Iterator[bytes]:
    """Yield a tensor's bytes: N(0, 0.02²), around 1 for a norm's scale; seeded by its name."""
    generator = np.random.default_rng([seed, *name.encode()])
    mean = 1.0 if _NORM.search(name.lower()) else 0.0
    remaining = prod(shape)
    while remaining:
        count = min(remaining, _BLOCK_VALUES)
        values = generator.standard_normal(count, np.float32) * np.float32(_STD) + np.float32(mean)
        yield values.astype(dtype).tobytes()
        remaining -= count


class _Pool:
    """The same distribution for billions of values: one drawn block, read from seeded places."""

    def __init__(self, dtype: str, seed: int) -> None:
        values = np.random.default_rng(seed).standard_normal(2 * _BLOCK_VALUES, np.float32)
        self._values = (values * np.float32(_STD)).astype(dtype)

    def blocks(self, name: str, shape: Shape, dtype: str, seed: int) -> Iterator[bytes]:
        if _NORM.search(name.lower()):
            yield from _blocks(name, shape, dtype, seed)
            return
        places = np.random.default_rng([seed, *name.encode()])
        remaining = prod(shape)
        while remaining:
            count = min(remaining, _BLOCK_VALUES)
            start = int(places.integers(_BLOCK_VALUES))
            yield self._values[start : start + count].tobytes()
            remaining -= count


def write_safetensors(
    path: Path, shapes: dict[str, Shape], dtype: str, seed: int, *, pooled: bool = False
) -> None:
    """Write random tensors of these shapes; the same seed, the same bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    body = json.dumps(header).encode()
    body += b" " * (-len(body) % 8)
    blocks = _Pool(dtype, seed).blocks if pooled else _blocks
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(body)) + body)
        for name, shape in shapes.items():
            for block in blocks(name, shape, dtype, seed):
                stream.write(block)


def write_sharded(
    folder: Path, shapes: dict[str, Shape], dtype: str, seed: int, shard_bytes: int
) -> None:
    """Write the tensors as shards of at most so many bytes, with their index; drawn from a pool."""
    groups: list[dict[str, Shape]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size_bytes = prod(shape) * np.dtype(dtype).itemsize
        if groups[-1] and filled + size_bytes > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += size_bytes
    weight_map: dict[str, str] = {}
    for index, group in enumerate(groups, 1):
        file = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        write_safetensors(folder / file, group, dtype, seed, pooled=True)
        weight_map |= dict.fromkeys(group, file)
    table = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table), "utf-8")


def without_head(adapter: Path) -> Path:
    """Take an adapter's head away, so that it has nothing but A and B; return its folder."""
    from safetensors.numpy import load_file, save_file

    path, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    save_file({name: v for name, v in load_file(path).items() if ".lora_" in name}, path)
    settings = json.loads(config.read_text("utf-8"))
    settings.update(modules_to_save=None, task_type=None)
    config.write_text(json.dumps(settings, indent=2), "utf-8")
    return adapter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", choices=("base", "adapter"))
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, help="write the base as shards")
    arguments = parser.parse_args()
    model, folder = MODELS[arguments.model], arguments.folder
    folder.mkdir(parents=True)
    if arguments.kind == "base":
        config = json.dumps(model.config, indent=2)
        (folder / "config.json").write_text(config, "utf-8")
        shapes = model.tensors(model.config)
        if arguments.shard_bytes:
            write_sharded(folder, shapes, model.dtype, arguments.seed, arguments.shard_bytes)
        else:
            write_safetensors(folder / "model.safetensors", shapes, model.dtype, arguments.seed)
    else:
        config = json.dumps(model.adapter_config(), indent=2)
        (folder / "adapter_config.json").write_text(config, "utf-8")
        shapes = model.adapter_tensors()  # float32, as PEFT trains and saves them
        write_safetensors(folder / "adapter_model.safetensors", shapes, "float32", arguments.seed)


if __name__ == "__main__":
    main()
