"""Build records of plans: version 2, and the committed ones of version 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.core.engine_record import read_engine_record
from lora_export.core.errors import LoraExportError
from lora_export.ondevice.trt.libraries import LIBRARIES

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION_1 = Path(__file__).resolve().parents[1] / "data/engine_records/version-1"
"""What version 0.1 wrote with the double of TensorRT: a refittable base, and a refit of it."""

RECORDS = sorted(each.name for each in VERSION_1.glob("*.json"))
ADDED = {"library", "built_on", "capabilities"}


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Path]:
    """Return a function: file name, changes (None: left out) → the plan of a changed copy."""

    def copied(name: str, **changes: Any) -> Path:
        path = Path(shutil.copy(VERSION_1 / name, tmp_path))
        table = {**json.loads(path.read_text()), **changes}
        for key in (key for key, value in changes.items() if value is None):
            del table[key]
        path.write_text(json.dumps(table))
        return path.with_suffix(".plan")

    return copied


def test_there_are_records_of_version_1() -> None:
    assert RECORDS == ["base.jetson-orin.trt10.3.0.json", "one.jetson-orin.trt10.3.0.json"]


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(("double", "library"), [(True, "test double"), (False, "tensorrt")])
def test_version_1_is_read(
    plan: Callable[..., Path], *, name: str, double: bool, library: str
) -> None:
    record = read_engine_record(plan(name, double=double))
    assert (record.library, record.library in LIBRARIES) == (library, not double)
    assert (record.built_on, record.capabilities) == ("device", ["8.7"])
    before = json.loads((VERSION_1 / name).read_text())
    after = record.model_dump()
    assert set(after) - set(before) == ADDED
    assert set(before) - set(after) == {"double"}
    for key in set(before) - {"double", "format_version", "refit"}:
        assert after[key] == before[key], key
    for weight, row in before["refit"].items():
        assert after["refit"][weight] == {"neighbour": False, **row}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"double": None}, "'double' is None"),
        ({"double": "no"}, "'double' is 'no'"),
        ({"gpu": "Orin"}, "'gpu' is 'Orin'"),
        ({"gpu": {"name": "Orin", "memory_bytes": 1}}, "is damaged: gpu.compute_capability"),
        ({"format_version": 2}, "'built_on' is None"),
        ({"format_version": 2, "built_on": "device", "capabilities": ["8.7"]}, "'library' is None"),
        (
            {"format_version": 2, "built_on": "moon", "capabilities": ["8.7"], "library": "a"},
            "is damaged: built_on",
        ),
        (
            {"format_version": 2, "built_on": "host", "capabilities": ["new"], "library": "a"},
            "is damaged: capabilities",
        ),
        ({"format_version": 3}, "format_version 3"),
    ],
)
def test_damaged_records_are_refused(
    plan: Callable[..., Path], changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(LoraExportError) as caught:
        read_engine_record(plan(RECORDS[0], **changes))
    assert text in caught.value.message
