"""Engines of TensorRT for RTX opened and run, with the double in the library's place.

What is proven is everything around the library; nobody has run such an engine here.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.commands import bench as benchmark
from lora_export.commands import engines
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.manifest import read_manifest
from lora_export.core.targets import RTX
from lora_export.engines.engine_options import EngineOptions
from lora_export.exports.packs import read_pack
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.trt import open_trt
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.double import RTX_VERSION, install_double

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.models import TinyModels

OPTIONS = EngineOptions(library=TENSORRT_RTX)
QUICK = {"rounds": 5, "max_rounds": 5, "startup": False, "lengths": (8,)}


def texts(batch: int, length: int) -> dict[str, np.ndarray[Any, Any]]:
    ids = np.random.default_rng(0).integers(3, 200, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install_double(monkeypatch, RTX_VERSION, library="tensorrt_rtx")


@pytest.fixture
def merged(rtx: Any, export: Callable[[str], Path]) -> Path:
    """An export with the engines of its two adapters and of the base."""
    export_dir = export("merged")
    engines.build(export_dir, RTX, graphs=["base", "one", "two"], options=OPTIONS)
    assert rtx.compiled == 0
    return export_dir


def run(export_dir: Path, graph: str = "one", *shapes: tuple[int, int], **options: Any) -> Any:
    """Open an engine and run it; return the last logits."""
    found = None
    with open_trt(export_dir, read_manifest(export_dir), graph, RTX, **options) as opened:
        for shape in shapes or ((2, 9),):
            found = opened.run(texts(*shape))["logits"]
    return found


def kernels(export_dir: Path, graph: str = "one") -> Path:
    (file,) = (export_dir / "engines").glob(f"{graph}.*.cache")
    return file


def test_engines_compute_what_the_graphs_do(rtx: Any, merged: Path) -> None:
    for name in ("base", "one", "two"):
        expected = OrtRunner(merged / f"{name}.onnx").run(texts(2, 9))["logits"]
        np.testing.assert_array_equal(run(merged, name), expected)
    assert rtx.cudart.allocated == {}
    assert rtx.cudart.streams == set()


def test_adapters_of_a_swappable_engine_take_turns(rtx: Any, export: Callable[[str], Path]) -> None:
    export_dir = export("swappable")
    engines.build(export_dir, RTX, options=OPTIONS)
    manifest, feeds = read_manifest(export_dir), texts(2, 9)
    reference = OrtRunner(export_dir / "swappable.onnx")
    with open_trt(export_dir, manifest, "swappable", RTX) as graph:
        for name in ("one", "two", "one"):
            pack = read_pack(export_dir, manifest, name)
            expected = reference.with_adapter(pack).run(feeds)["logits"]
            np.testing.assert_allclose(
                graph.with_adapter(pack).run(feeds)["logits"], expected, atol=1e-5
            )
    assert rtx.compiled


@pytest.mark.parametrize("kind", ["decoder", "pair"])
def test_decoders_are_opened(rtx: Any, export: Callable[[str], Path], kind: str) -> None:
    export_dir = export(kind)
    engines.build(export_dir, RTX, options=OPTIONS)
    with open_trt(export_dir, read_manifest(export_dir), "one", RTX) as graph:
        assert graph.outputs
    assert rtx.compiled == (2 if kind == "pair" else 1)


def test_what_was_compiled_is_kept_beside_the_plan(rtx: Any, merged: Path) -> None:
    run(merged, "one", (2, 9))
    assert kernels(merged).name == "one.rtx.rtx1.7.1.116.rtx-4090-double.cache"
    first = rtx.compiled
    assert first == 2
    run(merged, "one", (2, 9))
    assert rtx.compiled == first
    run(merged, "one", (2, 9), (1, 4))
    assert rtx.compiled == first + 1
    run(merged, "one", (1, 4))
    assert rtx.compiled == first + 1


def test_kernels_are_used_for_their_plan_gpu_and_driver_alone(rtx: Any, merged: Path) -> None:
    run(merged)
    own, count = kernels(merged).read_bytes(), rtx.compiled
    run(merged, "two")
    kernels(merged, "two").write_bytes(own)  # those of another plan
    count = rtx.compiled
    run(merged, "two")
    assert rtx.compiled == count + 2
    rtx.cudart.driver = 13000
    run(merged)
    assert rtx.compiled == count + 4
    rtx.cudart.name = "RTX 5090 (double)"
    run(merged)
    assert rtx.compiled == count + 6
    names = sorted(path.name for path in (merged / "engines").glob("one.*.cache"))
    assert [name.split(".")[-2] for name in names] == ["rtx-4090-double", "rtx-5090-double"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: b"",
        lambda data: data.replace(b'"driver"', b'"DRIVER"'),
        lambda data: b"[" * 100_000,
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
)
def test_damaged_kernels_cost_time_only(
    rtx: Any, merged: Path, spoil: Callable[[bytes], bytes]
) -> None:
    expected = run(merged)
    file = kernels(merged)
    whole, count = file.read_bytes(), rtx.compiled
    file.write_bytes(spoil(whole))
    if spoil(whole).endswith(whole[-9:]):  # of other facts, which is no damage
        found = run(merged)
    else:
        with pytest.warns(RuntimeWarning, match="are damaged") as told:
            found = run(merged)
        assert len(told) == 1
    np.testing.assert_array_equal(found, expected)
    assert rtx.compiled == count + 2
    assert file.read_bytes() == whole


def test_kernels_belong_to_the_machine(rtx: Any, merged: Path, capsys: Any) -> None:
    """They are in no manifest and no finding, and go with their adapter."""
    run(merged, "one")
    run(merged, "two")
    assert not any(file.endswith(".cache") for file in read_manifest(merged).files)
    assert "not in the manifest" not in call(capsys, "inspect", merged).out
    assert call(capsys, "remove", merged, "two").code == 0
    assert [path.name.split(".")[0] for path in (merged / "engines").glob("*.cache")] == ["one"]
    assert rtx.compiled


def test_kernels_that_the_library_refuses_are_replaced(
    rtx: Any, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(merged)
    count = rtx.compiled
    with monkeypatch.context() as patch:
        patch.setattr(rtx.IRuntimeCache, "deserialize", lambda self, blob: False)
        run(merged)
    assert rtx.compiled == count + 2
    run(merged)
    assert rtx.compiled == count + 2


def test_a_disk_that_refuses_is_told_once(rtx: Any, merged: Path) -> None:
    run(merged)
    file, expected = kernels(merged), run(merged)
    file.unlink()
    file.symlink_to(merged / "elsewhere")
    with pytest.warns(RuntimeWarning, match="every start compiles them again") as told:
        found = run(merged, "one", (1, 4), (2, 9))
    assert len(told) == 1
    np.testing.assert_array_equal(found, expected)
    assert not (merged / "elsewhere").exists()
    assert rtx.compiled


def test_cuda_graphs_are_the_librarys_own(rtx: Any, merged: Path) -> None:
    run(merged, "one", *[(2, 9)] * 3)
    assert rtx.recorded == 0
    run(merged, "one", *[(2, 9)] * 3, cuda_graphs=True)
    assert (rtx.recorded, rtx.cudart.launches) == (3, 0)


@pytest.mark.parametrize(
    ("validity", "words"),
    [
        (("INVALID", 2), ["not built for the compute capability of this GPU"]),
        (("INVALID", 1 | 4), ["built by another release", "CUDA driver is too old"]),
        (("INVALID", 16 | 256), ["too little memory", "diagnostic 0x100"]),
        (("INVALID", 0), ["gives no reason"]),
    ],
)
def test_an_invalid_engine_is_refused_by_its_reasons(
    rtx: Any, merged: Path, validity: tuple[str, int], words: list[str]
) -> None:
    rtx.validity = validity
    with pytest.raises(DeviceError, match="TensorRT for RTX cannot run the plan here") as caught:
        run(merged)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    for each in words:
        assert each in caught.value.message
    assert rtx.compiled == 0
    assert not list((merged / "engines").glob("*.cache"))


def test_a_slow_engine_is_run_and_told(rtx: Any, merged: Path) -> None:
    rtx.validity = ("SUBOPTIMAL", 2)
    with pytest.warns(RuntimeWarning, match="may run slowly here: it was not built for"):
        run(merged)


def test_what_was_refused_before_still_is(rtx: Any, merged: Path) -> None:
    rtx.cudart.capability = (7, 5)
    with pytest.raises(DeviceError, match=r"compute capability 8\.0, .* and later, this GPU"):
        run(merged)
    rtx.cudart.capability = (8, 9)
    plan, other = ((merged / "engines" / f"{n}.rtx.rtx{RTX_VERSION}.plan") for n in ("one", "two"))
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1])
    with pytest.raises(DeviceError, match="bytes, its record says"):
        run(merged)
    shutil.copy(other, plan)
    with pytest.raises(DeviceError, match=r"one\.rtx"):
        run(merged)
    plan.write_bytes(whole)
    rtx.__version__ = "1.8.0.1"
    with pytest.raises(DeviceError, match=r"built by TensorRT for RTX 1\.7\.1\.116, this is 1\.8"):
        run(merged)


def test_engines_are_timed_beside_the_graphs(rtx: Any, merged: Path) -> None:
    found = benchmark.bench(merged, graphs=["one"], runners=["rtx", "ort-cpu"], **QUICK).report
    assert list(found.cells[0].times) == ["rtx:base", "rtx:one", "ort-cpu:base", "ort-cpu:one"]
    assert list(found.subjects["rtx:one"].files) == [f"engines/one.rtx.rtx{RTX_VERSION}.plan"]
    assert rtx.compiled


def test_a_base_without_a_head_is_not_timed(rtx: Any, tiny: TinyModels, tmp_path: Path) -> None:
    """It has no engine: the adapter's is compared with the graph, and with nothing else."""
    task, export_dir = "text-classification", tmp_path / "out"
    base = tiny.base("roberta", "feature-extraction")
    build(base, {"one": tiny.adapter(base, seed=1)}, export_dir, task=task)
    engines.build(export_dir, RTX, options=OPTIONS)
    found = benchmark.bench(export_dir, runners=["rtx", "ort-cpu"], **QUICK).report
    assert list(found.cells[0].times) == ["rtx:one", "ort-cpu:base", "ort-cpu:one"]
    over = {(row.subject, row.over) for row in found.cells[0].ratios}
    assert ("ort-cpu:one", "rtx:one") in over
    assert not any("rtx:base" in pair for pair in over)
    with pytest.raises(UsageError, match="nothing to judge: the base has no engine"):
        benchmark.bench(export_dir, runners=["rtx"], max_ratio=1.05, **QUICK)
    assert rtx.compiled


def test_a_pair_of_engines_is_not_timed(rtx: Any, export: Callable[[str], Path]) -> None:
    export_dir = export("pair")
    engines.build(export_dir, RTX, options=OPTIONS)
    with pytest.raises(UnsupportedError, match="are two, an encoder's and a decoder's"):
        benchmark.bench(export_dir, runners=["rtx"], **QUICK)
    assert rtx.compiled == 0


def test_a_library_without_a_cache_is_told(
    rtx: Any, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx.IRuntimeConfig, "set_runtime_cache", lambda self, cache: False)
    with pytest.warns(RuntimeWarning, match="takes no runtime cache"):
        run(merged)
    assert not list((merged / "engines").glob("*.cache"))


def test_bench_says_what_is_missing(
    rtx: Any, export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    export_dir = export("merged")
    result = call(capsys, "bench", export_dir, "--runner", "rtx")
    assert result.code == 2
    assert "no engine of 'base' for TensorRT for RTX" in result.message
    assert "lora-export build EXPORT --target rtx --graph base" in result.message
    rtx.cudart.devices = 0
    result = call(capsys, "bench", export_dir, "--runner", "rtx")
    assert (result.code, "finds no CUDA device" in result.message) == (7, True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = call(capsys, "bench", export_dir, "--runner", "rtx")
    assert result.code == 7
    assert "pip install 'tensorrt-rtx-cu12>=1.7,<2'" in result.message


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: it has wheels for x86-64 Linux and Windows",
)
def test_the_real_library_judges_its_engines(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why it cannot: here there is no driver, so that only a double of CUDA lets us ask."""
    export_dir = export("merged")
    engines.build(export_dir, RTX, graphs=["one"], options=OPTIONS)
    (plan,) = (export_dir / "engines").glob("one.*.plan")
    install_double(monkeypatch)  # of TensorRT, which is not used, and of CUDA
    from lora_export.ondevice.trt.api import Log, import_library
    from lora_export.ondevice.trt.plan_loading import deserialize

    log = Log(import_library(TENSORRT_RTX))
    with pytest.raises(DeviceError, match="it is damaged, or no engine of this library"):
        deserialize(b"another" + plan.read_bytes(), log)
    if log.module.Runtime(log.logger).get_engine_validity(plan.read_bytes())[0].name == "INVALID":
        with pytest.raises(DeviceError, match=r"cannot run the plan here: .*CUDA"):
            deserialize(plan.read_bytes(), log)
