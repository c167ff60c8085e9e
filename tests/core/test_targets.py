"""The table of targets: every fact has a source, and what is not in it is refused."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.targets import (
    AUTO,
    DEFAULT_TARGET,
    PRECISIONS,
    TARGETS,
    by_name,
    dtype_of_precision,
    require_tensorrt_target,
    target_of_device,
)

DERIVED = {"name", "sources", "software"}
"""What says nothing about the device: ``software`` goes with ``tensorrt``."""

DEVICES = [
    ((8, 7), "Orin", "jetson-orin"),
    ((11, 0), "NVIDIA Thor", "jetson-thor"),
    ((12, 1), "NVIDIA GB10", "dgx-spark"),
    ((8, 6), "NVIDIA A10", "a10"),
    ((8, 6), "NVIDIA A10G", "a10"),
    ((8, 6), "NVIDIA GeForce RTX 3090", "rtx-ampere"),
    ((8, 6), "NVIDIA RTX A6000", "rtx-ampere"),
    ((8, 9), "NVIDIA L4", "l4"),
    ((8, 9), "NVIDIA GeForce RTX 4090", "rtx-ada"),
    ((8, 0), "NVIDIA A100-SXM4-80GB", "a100"),
    ((9, 0), "NVIDIA H100 80GB HBM3", "h100"),
    ((9, 0), "NVIDIA H200", "h200"),
    ((12, 0), "NVIDIA GeForce RTX 5090", "rtx-blackwell"),
]


@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_every_fact_has_a_source(row):
    stated = {
        field.name
        for field in fields(row)
        if field.name not in DERIVED and getattr(row, field.name) not in (None, (), False)
    }
    assert set(row.sources) == stated
    assert all(row.sources.values())


@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_every_row_is_consistent(row):
    assert set(row.dtypes) <= set(DTYPES)
    assert len(row.tensorrt) == len(row.software)
    versions = [tuple(map(int, version.split("."))) for version in row.tensorrt]
    assert versions == sorted(set(versions))
    assert list(row.memory_gib) == sorted(set(row.memory_gib))
    if row.tensorrt:
        words = {word for word, dtype in PRECISIONS.items() if dtype in row.dtypes}
        assert words == set(PRECISIONS) & set(row.precisions)


def test_what_the_device_is_not_known_to_have_is_what_every_device_has():
    engines = [row for row in TARGETS.values() if row.tensorrt and row.name != AUTO]
    common = set.intersection(*(set(row.dtypes) for row in engines))
    assert set(TARGETS[AUTO].dtypes) <= common
    assert TARGETS[AUTO].opset == min(row.opset for row in engines)


def test_an_orin_has_an_accelerator_and_no_fp8_and_a_thor_the_reverse():
    orin, thor = TARGETS["jetson-orin"], TARGETS["jetson-thor"]
    assert (orin.architecture, bool(orin.dla), "fp8" in orin.precisions) == (
        "sm_87",
        True,
        False,
    )
    assert (thor.architecture, thor.dla, "fp4" in thor.precisions) == ("sm_110", (), True)
    assert orin.tensorrt[0] == "10.3"
    assert {version for version, _ in orin.dla} <= set(orin.tensorrt)
    assert orin.shared_memory
    assert thor.shared_memory


def test_a_target_without_a_gpu_has_no_architecture():
    assert TARGETS[DEFAULT_TARGET].architecture is None
    assert TARGETS[AUTO].architecture is None


@pytest.mark.parametrize(
    ("name", "near"),
    [("jetson-orin-nano", "jetson-orin"), ("H100", "h100"), ("rtx-adda", "rtx-ada")],
)
def test_an_unknown_target_names_the_nearest(name, near):
    with pytest.raises(UsageError, match="unknown target") as caught:
        by_name(name)
    assert repr(name) in caught.value.message
    assert f"'{near}'" in (caught.value.hint or "")


def test_a_target_of_onnxruntime_has_no_engine():
    with pytest.raises(UsageError, match="'onnxruntime-cpu' runs graphs in ONNX Runtime") as caught:
        require_tensorrt_target("onnxruntime-cpu")
    assert "jetson-orin" in (caught.value.hint or "")
    assert require_tensorrt_target("l4") is TARGETS["l4"]


def test_a_precision_is_a_dtype_that_the_target_has():
    assert dtype_of_precision("bf16", TARGETS["h100"]) == "bfloat16"
    with pytest.raises(UnsupportedError, match="'auto' does not support bf16") as caught:
        dtype_of_precision("bf16", TARGETS[AUTO])
    assert "float16" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        dtype_of_precision("fp8", TARGETS["h100"])


@pytest.mark.parametrize(("capability", "device", "name"), DEVICES)
def test_the_row_of_a_device(capability, device, name):
    found = target_of_device(capability, device)
    assert found is not None
    assert found.name == name


def test_a_device_of_another_generation_has_no_row():
    assert target_of_device((7, 5), "Tesla T4") is None
