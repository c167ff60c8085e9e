from __future__ import annotations

import json
import struct

import pytest

from lora_export.ondevice.bundle.tensor_values import read_values
from lora_export.ondevice.device_errors import InputError

ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "change",
    [
        {"shape": ["a", 10**12]},
        {"shape": [[1], 10**12]},
        {"shape": [0, 2**63]},
        {"shape": [-1]},
        {"data_offsets": [0, 2**70]},
        {"data_offsets": [-8, 0]},
        {"dtype": "F4"},
    ],
)
def test_a_tensor_that_lies_is_refused_before_it_is_read(change, tmp_path) -> None:
    header = json.dumps({"a": {**ROW, **change}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(InputError, match="missing or damaged"):
        read_values(path)


def test_a_header_that_is_not_there(tmp_path) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(InputError, match="announces a header"):
        read_values(tmp_path / "x.safetensors")
