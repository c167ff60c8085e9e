"""A base and an adapter to be spoiled, ways to spoil them, and what a refusal looks like."""

from __future__ import annotations

import json
import shutil
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors.numpy import load_file, save_file

from tests.cli.running import Result, call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


TASK = "text-classification"
ADAPTER_FILE = "adapter_model.safetensors"


class Inputs(NamedTuple):
    """A copy of a base and of an adapter, to be spoiled, and where the export would go."""

    base: Path
    adapter: Path
    out: Path


def build(capsys, inputs: Inputs, *flags: object, name: str = "mine") -> Result:
    return call(capsys, "export", "--base", inputs.base, "--adapter", f"{name}={inputs.adapter}",
                "--task", TASK, "--out", inputs.out, *flags)  # fmt: skip


def assert_refused(result: Result, inputs: Inputs, code: int, *words: str) -> None:
    """Require the code, one message with `words`, and nothing left on disk."""
    assert result.code == code, result.err
    for word in words:
        assert word in result.message
    assert len(result.message) < 1500
    assert not inputs.out.exists()
    assert list(inputs.out.parent.iterdir()) == []


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path, metadata={"format": "pt"})


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    changed = change(header)
    raw = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def poison(adapter: Path, target: Path, value: float) -> None:
    """Copy `adapter` with one number replaced."""
    shutil.copytree(adapter, target)

    def change(tensors):
        name = max(tensors, key=lambda n: ("lora_B" in n, n))
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = value

    edit_tensors(target / ADAPTER_FILE, change)
