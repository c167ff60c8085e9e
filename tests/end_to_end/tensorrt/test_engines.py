"""The way from an export to an engine and its adapters, on TensorRT itself.

The oracle is ONNX Runtime on the CPU, which runs the same graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.commands import engines
from lora_export.core.engine_record import read_engine_record
from lora_export.core.manifest import read_manifest
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.refit_values import base_supply, refit_values
from lora_export.exports.packs import read_pack
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.judge.decoding import PAST, decode_in_pieces, with_buffers
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.plan_opening import open_live
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.ort_encoder_decoder import OrtEncoderDecoder
from lora_export.runtime.trt import open_trt
from tests.helpers.engine_exports import require_close, texts
from tests.helpers.pieces import run_in_pieces

if TYPE_CHECKING:
    from pathlib import Path

    Array = np.ndarray[Any, Any]

pytestmark = [pytest.mark.tensorrt, pytest.mark.gpu]

AUTO = "auto"


def built(export_dir: Path, *graphs: str, **options: Any) -> str:
    """Build engines; return the target that this device is."""
    records = engines.build(export_dir, AUTO, graphs=graphs, options=EngineOptions(**options))
    assert all(each["library"] == "tensorrt" for each in records)
    return str(records[0]["target"])


def test_merged(real_exports: Path) -> None:
    export_dir = real_exports / "merged"
    target = built(export_dir, "base", "one")
    for name in ("base", "one"):
        expected = OrtRunner(export_dir / f"{name}.onnx")
        with open_trt(export_dir, read_manifest(export_dir), name, target) as graph:
            for shape in ((1, 1), (2, 9), (8, 158)):
                feeds = texts(*shape)
                found = graph.run(feeds)["logits"]
                require_close(export_dir, found, expected.run(feeds)["logits"])
            with pytest.raises(DeviceError, match="no profile covers"):
                graph.run(texts(9, 1))


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_swappable(real_exports: Path, cuda_graphs: bool) -> None:
    export_dir = real_exports / "swappable"
    target = built(export_dir)
    manifest, feeds = read_manifest(export_dir), texts(2, 9)
    reference = OrtRunner(export_dir / "swappable.onnx")
    with open_trt(export_dir, manifest, "swappable", target, cuda_graphs=cuda_graphs) as graph:
        for name in ("one", "two", "one"):
            pack = read_pack(export_dir, manifest, name)
            expected = reference.with_adapter(pack).run(feeds)["logits"]
            for _ in range(3):
                require_close(export_dir, graph.with_adapter(pack).run(feeds)["logits"], expected)
        base = OrtRunner(export_dir / "base.onnx").run(feeds)["logits"]
        require_close(export_dir, graph.run(feeds)["logits"], base)


def test_decoder(real_exports: Path) -> None:
    export_dir = real_exports / "decoder"
    target = built(export_dir, "one")
    reference = OrtRunner(export_dir / "one.onnx")
    ids = np.random.default_rng(1).integers(3, 200, (2, 12))
    dtype = np.dtype(read_manifest(export_dir).base.dtype)
    with open_trt(export_dir, read_manifest(export_dir), "one", target) as graph:
        past: dict[str, Array] = {
            name: np.zeros((2, 4, 0, 8), dtype) for name in graph.inputs if name.startswith("past")
        }
        for feeds, found in run_in_pieces(graph, ids, past):
            require_close(export_dir, found["logits"], reference.run(feeds)["logits"])


def test_static_cache(real_exports: Path) -> None:
    export_dir = real_exports / "static"
    target = built(export_dir, "one")
    reference = OrtRunner(export_dir / "one.onnx")
    ids = np.random.default_rng(1).integers(3, 200, (2, 12))
    dtype = read_manifest(export_dir).base.dtype
    with open_trt(export_dir, read_manifest(export_dir), "one", target) as graph:
        buffers = {name: [4, 24, 8, dtype] for name in graph.inputs if name.startswith(PAST)}
        past = {n: v for n, v in with_buffers({"input_ids": ids}, buffers).items() if n in buffers}
        for feeds, found in run_in_pieces(graph, ids, past, static=24):
            require_close(export_dir, found["logits"], reference.run(feeds)["logits"])


def test_encoder_and_decoder(real_exports: Path) -> None:
    export_dir = real_exports / "pair"
    target = built(export_dir, "one")
    manifest = read_manifest(export_dir)
    written = np.random.default_rng(3).integers(3, 200, (2, 7))
    reference = OrtEncoderDecoder(export_dir, manifest.graphs["one"])
    expected = decode_in_pieces(reference.encode(texts(2, 9))[0], written)
    with open_trt(export_dir, manifest, "one", target) as graph:
        found = graph.run({**texts(2, 9), "decoder_input_ids": written})["logits"]
    require_close(export_dir, found, expected)


def test_refit(real_exports: Path) -> None:
    export_dir = real_exports / "merged"
    target = built(export_dir, refit=True)
    (plan,) = (export_dir / "engines").glob(f"base.{target}.*.plan")
    assert "REFIT_INDIVIDUAL" in read_engine_record(plan).flags
    for name in ("one", "two"):
        engines.refit(export_dir, AUTO, name)
        with open_trt(export_dir, read_manifest(export_dir), name, target) as graph:
            expected = OrtRunner(export_dir / f"{name}.onnx").run(texts(2, 9))["logits"]
            require_close(export_dir, graph.run(texts(2, 9))["logits"], expected)
    manifest = read_manifest(export_dir)
    live, record = open_live(
        export_dir,
        plan.relative_to(export_dir).as_posix(),
        sha256=manifest.files,
        fingerprint=manifest.base.fingerprint,
    )
    base = live.run(texts(2, 9))["logits"]
    live.use(
        refit_values(export_dir, manifest, record, "one", None), base_supply(export_dir, record)
    )
    assert np.abs(live.run(texts(2, 9))["logits"] - base).max() > 1e-3
    live.use_base()
    np.testing.assert_array_equal(live.run(texts(2, 9))["logits"], base)
    live.close()


def test_refit_of_a_plan_without_weights(real_exports: Path) -> None:
    export_dir = real_exports / "merged"
    target = built(export_dir, refit=True, strip_weights=True)
    engines.refit(export_dir, AUTO, "one")
    with open_trt(export_dir, read_manifest(export_dir), "one", target) as graph:
        expected = OrtRunner(export_dir / "one.onnx").run(texts(2, 9))["logits"]
        require_close(export_dir, graph.run(texts(2, 9))["logits"], expected)


def test_stripped_and_version_compatible(real_exports: Path) -> None:
    export_dir = real_exports / "merged"
    for options in ({"strip_weights": True}, {"version_compatible": True}):
        target = built(export_dir, "one", **options)
        with open_trt(export_dir, read_manifest(export_dir), "one", target) as graph:
            expected = OrtRunner(export_dir / "one.onnx").run(texts(2, 9))["logits"]
            require_close(export_dir, graph.run(texts(2, 9))["logits"], expected)


def test_memory_is_given_back(real_exports: Path) -> None:
    export_dir = real_exports / "merged"
    target = built(export_dir, "one")
    cuda = open_cuda()
    manifest = read_manifest(export_dir)

    def used() -> int:
        with open_trt(export_dir, manifest, "one", target) as graph:
            graph.run(texts(8, 158))
        free, total = cuda.memory_bytes()
        return total - free

    first = used()
    for _ in range(5):
        last = used()
    assert last - first < 32 << 20
