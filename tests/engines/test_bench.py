"""``bench`` on engines that the double of TensorRT has built: what is timed, what is missing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_export.commands import bench as benchmark
from lora_export.commands import engines
from lora_export.core.errors import UsageError
from lora_export.core.manifest import read_manifest, write_manifest
from lora_export.exports.packs import read_pack
from lora_export.ondevice.device_errors import DeviceError
from lora_export.runtime.trt import open_trt, targets_of
from tests.cli.running import call
from tests.helpers.double import install_double

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TARGET = "jetson-orin"
QUICK = {"rounds": 5, "max_rounds": 5, "startup": False, "lengths": (8,)}


def test_engines_are_timed_beside_the_graphs(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    engines.build(export_dir, TARGET, graphs=["base", "one"])
    found = benchmark.bench(
        export_dir, graphs=["one"], runners=["tensorrt", "ort-cpu"], max_ratio=1000, **QUICK
    ).report
    keys = ["tensorrt:base", "tensorrt:one", "ort-cpu:base", "ort-cpu:one"]
    assert list(found.cells[0].times) == keys
    (plan,) = found.subjects["tensorrt:one"].files
    assert found.subjects["tensorrt:one"].files[plan] == read_manifest(export_dir).files[plan]
    assert plan.startswith("engines/one.jetson-orin.trt10.3.0")
    compared = {(row.subject, row.over) for row in found.cells[0].ratios}
    assert {("tensorrt:one", "tensorrt:base"), ("ort-cpu:one", "tensorrt:one")} <= compared
    assert [row.subject for row in found.gate.rows] == ["tensorrt:one", "ort-cpu:one"]
    assert "reports/bench.json" in read_manifest(export_dir).files


def test_the_adapters_of_a_swappable_engine_and_a_decoder_with_its_cache(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("swappable")
    engines.build(export_dir, TARGET, graphs=["base", "swappable"])
    found = benchmark.bench(export_dir, runners=["tensorrt"], batches=(2,), **QUICK).report
    assert [subject.graph for subject in found.subjects.values()] == [
        "base", "swappable", "one", "two",
    ]  # fmt: skip
    decoder = export("decoder")
    engines.build(decoder, TARGET, graphs=["base", "one"])
    found = benchmark.bench(decoder, runners=["tensorrt"], pasts=(4,), **QUICK).report
    assert [cell.kind for cell in found.cells] == ["prefill", "decode"]


def test_a_bound_run_computes_what_a_run_does_without_a_copy(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = export("swappable")
    engines.build(export_dir, TARGET, graphs=["swappable"])
    manifest = read_manifest(export_dir)
    assert targets_of(manifest, "swappable") == [TARGET]
    assert targets_of(manifest, "base") == []
    ids = np.random.default_rng(0).integers(3, 200, (2, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    pack = dict(read_pack(export_dir, manifest, "one"))
    for recorded in (False, True):
        with open_trt(
            export_dir, manifest, "swappable", TARGET, adapter=pack, cuda_graphs=recorded
        ) as engine:
            expected = engine.run(feeds)
            run = engine.bound(feeds)
            moved: list[object] = []
            with monkeypatch.context() as patch:
                for name in ("copy_to_device", "copy_to_host"):
                    patch.setattr(type(engine.runner._cuda), name, moved.append)
                for _ in range(3):
                    run()
            assert moved == []
            again = engine.run(feeds)
            for name, values in expected.items():
                np.testing.assert_array_equal(again[name], values)
            engine.run({name: each[:, :4] for name, each in feeds.items()})
            with pytest.raises(DeviceError, match="other shapes"):
                run()
    assert module is not None


def test_an_engine_that_is_missing_is_named_with_how_to_build_it(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    engines.build(export_dir, TARGET, graphs=["one"])
    with pytest.raises(UsageError, match=r"no engine of 'base' for TensorRT 10\.3\.0") as caught:
        benchmark.bench(export_dir, graphs=["one"], runners=["tensorrt"], **QUICK)
    assert "--graph base" in (caught.value.hint or "")
    engines.build(export_dir, TARGET, graphs=["base"])
    manifest = read_manifest(export_dir)
    plan, other = (f"engines/base.{each}.trt10.3.0.plan" for each in (TARGET, "a10"))
    shutil.copy(export_dir / plan, export_dir / other)
    files = {**manifest.files, other: manifest.files[plan]}
    write_manifest(export_dir, manifest.model_copy(update={"files": files}))
    with pytest.raises(UsageError, match="has engines for"):
        benchmark.bench(export_dir, graphs=["one"], runners=["tensorrt"], **QUICK)


def test_without_tensorrt_the_exit_code_is_7(export, capsys, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    result = call(capsys, "bench", export("merged"), "--runner", "tensorrt")
    assert result.code == 7
    assert "TensorRT is not installed" in result.message
