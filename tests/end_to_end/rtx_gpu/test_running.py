"""The way from an export to a device, on TensorRT for RTX itself: ``make test-rtx``.

Build, open, verify, swap adapters, measure, pack, and what the bundle's program says. The oracles
are ONNX Runtime on the CPU, which runs the same graphs, and the golden outputs of PEFT.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.bundle.device_bundle import bundle_export
from lora_export.bundle.packing import unpack
from lora_export.commands import bench as benchmark
from lora_export.commands import engines
from lora_export.core.manifest import read_manifest
from lora_export.core.targets import RTX
from lora_export.engines.engine_options import EngineOptions
from lora_export.exports.packs import read_pack
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.judge.decoding import PAST, decode_in_pieces, with_buffers
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.ort_encoder_decoder import OrtEncoderDecoder
from lora_export.runtime.trt import open_trt
from tests.helpers.engine_exports import require_close, texts
from tests.helpers.pieces import run_in_pieces

if TYPE_CHECKING:
    from pathlib import Path

    Array = np.ndarray[Any, Any]

pytestmark = [pytest.mark.tensorrt, pytest.mark.gpu]

SHAPES = ((1, 1), (2, 9), (8, 158))


def built(export_dir: Path, *graphs: str) -> None:
    """Build the engines that are not there yet."""
    wanted = [
        name for name in graphs if not list((export_dir / "engines").glob(f"*{name}.rtx.rtx*.plan"))
    ]
    if wanted:
        engines.build(export_dir, RTX, graphs=wanted, options=EngineOptions(library=TENSORRT_RTX))


@pytest.mark.parametrize("wait_for_kernels", [False, True])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_merged(rtx_exports: Path, cuda_graphs: bool, wait_for_kernels: bool) -> None:
    export_dir = rtx_exports / "merged"
    built(export_dir, "base", "one", "two")
    options = {"cuda_graphs": cuda_graphs, "wait_for_kernels": wait_for_kernels}
    for name in ("base", "one"):
        expected = OrtRunner(export_dir / f"{name}.onnx")
        with open_trt(export_dir, read_manifest(export_dir), name, RTX, **options) as graph:
            for shape in (*SHAPES, *SHAPES):
                feeds = texts(*shape)
                for _ in range(3):
                    found = graph.run(feeds)["logits"]
                    require_close(export_dir, found, expected.run(feeds)["logits"])
            with pytest.raises(DeviceError, match="no profile covers"):
                graph.run(texts(9, 1))


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_adapters_take_turns(rtx_exports: Path, cuda_graphs: bool) -> None:
    export_dir = rtx_exports / "swappable"
    built(export_dir, "swappable")
    manifest, feeds = read_manifest(export_dir), texts(2, 9)
    reference = OrtRunner(export_dir / "swappable.onnx")
    with open_trt(export_dir, manifest, "swappable", RTX, cuda_graphs=cuda_graphs) as graph:
        for name in ("one", "two", "one"):
            pack = read_pack(export_dir, manifest, name)
            expected = reference.with_adapter(pack).run(feeds)["logits"]
            for _ in range(3):
                require_close(export_dir, graph.with_adapter(pack).run(feeds)["logits"], expected)
        base = OrtRunner(export_dir / "base.onnx").run(feeds)["logits"]
        require_close(export_dir, graph.run(feeds)["logits"], base)


@pytest.mark.parametrize(("kind", "static"), [("decoder", None), ("static", 24)])
def test_decoder(rtx_exports: Path, kind: str, static: int | None) -> None:
    export_dir = rtx_exports / kind
    built(export_dir, "one")
    reference = OrtRunner(export_dir / "one.onnx")
    ids = np.random.default_rng(1).integers(3, 200, (2, 12))
    dtype = read_manifest(export_dir).base.dtype
    with open_trt(export_dir, read_manifest(export_dir), "one", RTX) as graph:
        caches = [name for name in graph.inputs if name.startswith(PAST)]
        if static is None:
            past = {name: np.zeros((2, 4, 0, 8), np.dtype(dtype)) for name in caches}
        else:
            buffers = {name: [4, static, 8, dtype] for name in caches}
            whole = with_buffers({"input_ids": ids}, buffers)
            past = {name: whole[name] for name in caches}
        for feeds, found in run_in_pieces(graph, ids, past, static=static):
            require_close(export_dir, found["logits"], reference.run(feeds)["logits"])


def test_encoder_and_decoder(rtx_exports: Path) -> None:
    export_dir = rtx_exports / "pair"
    built(export_dir, "one")
    manifest = read_manifest(export_dir)
    written = np.random.default_rng(3).integers(3, 200, (2, 7))
    reference = OrtEncoderDecoder(export_dir, manifest.graphs["one"])
    expected = decode_in_pieces(reference.encode(texts(2, 9))[0], written)
    with open_trt(export_dir, manifest, "one", RTX) as graph:
        found = graph.run({**texts(2, 9), "decoder_input_ids": written})["logits"]
    require_close(export_dir, found, expected)


def test_kernels_are_kept_and_used(rtx_exports: Path) -> None:
    export_dir = rtx_exports / "merged"
    built(export_dir, "two")
    manifest, feeds = read_manifest(export_dir), texts(2, 9)
    for file in (export_dir / "engines").glob("two.*.cache"):
        file.unlink()
    with open_trt(export_dir, manifest, "two", RTX, wait_for_kernels=True) as graph:
        assert not graph.runner.uses_stored_kernels
        expected = graph.run(feeds)["logits"]
    (file,) = (export_dir / "engines").glob("two.*.cache")
    assert file.stat().st_size > 512
    with open_trt(export_dir, manifest, "two", RTX, wait_for_kernels=True) as graph:
        assert graph.runner.uses_stored_kernels
        np.testing.assert_array_equal(graph.run(feeds)["logits"], expected)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="are damaged"):
        opened = open_trt(export_dir, manifest, "two", RTX, wait_for_kernels=True)
    with opened as graph:
        assert not graph.runner.uses_stored_kernels
        np.testing.assert_array_equal(graph.run(feeds)["logits"], expected)


def test_bench(rtx_exports: Path) -> None:
    export_dir = rtx_exports / "merged"
    built(export_dir, "base", "one")
    found = benchmark.bench(
        export_dir,
        graphs=["one"],
        runners=["rtx", "ort-cpu"],
        rounds=20,
        max_rounds=20,
        lengths=(32,),
    ).report
    times = found.cells[0].times
    assert list(times) == ["rtx:base", "rtx:one", "ort-cpu:base", "ort-cpu:one"]
    assert all(row.median_ms > 0 for row in times.values())
    assert found.environment.gpus


@pytest.mark.parametrize("kind", ["merged", "swappable", "decoder", "static", "pair"])
def test_bundle(rtx_exports: Path, tmp_path: Path, kind: str) -> None:
    """A bundle on a user's PC, which has Python, NumPy and the library."""
    export_dir = rtx_exports / kind
    adapters = list(read_manifest(export_dir).adapters)
    built(export_dir, *(["swappable"] if kind == "swappable" else ["base", *adapters]))
    unpack(bundle_export(export_dir, RTX, tmp_path / "a.tar").path, tmp_path / "bundle")
    for kept in (False, True):
        done = subprocess.run(
            [sys.executable, "-I", str(tmp_path / "bundle/run.py"), "--max-ratio", "1000"],
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads((tmp_path / "bundle/report.tensorrt-rtx.json").read_text())
        rows = report["parity"]["graphs"]
        assert {name: row["verdict"] for name, row in rows.items()} == dict.fromkeys(
            ["base", *adapters], "pass"
        )
        assert {row["kept"] for row in report["engines"].values()} == {kept}


def test_memory_is_given_back(rtx_exports: Path) -> None:
    export_dir = rtx_exports / "merged"
    built(export_dir, "one")
    cuda = open_cuda()
    manifest = read_manifest(export_dir)

    def used() -> int:
        with open_trt(export_dir, manifest, "one", RTX) as graph:
            graph.run(texts(8, 158))
        free, total = cuda.memory_bytes()
        return total - free

    first = used()
    for _ in range(5):
        last = used()
    assert last - first < 32 << 20
