"""Engines of an export, built by the double of TensorRT and compared with ONNX Runtime.

What is proven is everything around TensorRT; itself runs in ``tests/end_to_end/tensorrt``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from lora_export.commands import engines
from lora_export.core.engine_record import read_engine_record
from lora_export.core.errors import LoraExportError
from lora_export.core.manifest import read_manifest
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.jobs import jobs_of
from lora_export.exports.packs import read_pack
from lora_export.ondevice.judge.decoding import PAST, decode_in_pieces, with_buffers
from lora_export.ondevice.trt.engine_builder import build as build_on_device
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.ort_encoder_decoder import OrtEncoderDecoder
from lora_export.runtime.trt import open_trt
from tests.cli.exports import assert_intact
from tests.helpers.double import VERSIONS, install_double
from tests.helpers.pieces import run_in_pieces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TARGET = "jetson-orin"
SHAPES = ((1, 1), (2, 9), (8, 158))


def texts(batch: int, length: int, *, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    ids = np.random.default_rng(seed).integers(3, 200, (batch, length))
    mask = np.ones_like(ids)
    mask[1:, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def trt_version(export_dir: Path, stem: str = "base") -> Path:
    (plan,) = (export_dir / "engines").glob(f"{stem}.{TARGET}.trt*.plan")
    return plan


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_compute_what_the_graphs_do(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    module = install_double(monkeypatch, version)
    export_dir = export("merged")
    records = engines.build(export_dir, TARGET, graphs=["base", "one"])
    manifest = read_manifest(export_dir)
    assert [each["graph"] for each in records] == ["base", "one"]
    for name in ("base", "one"):
        with open_trt(export_dir, manifest, name, TARGET) as graph:
            for shape in SHAPES:
                feeds = texts(*shape)
                expected = OrtRunner(export_dir / f"{name}.onnx").run(feeds)
                found = graph.run(feeds)
                np.testing.assert_array_equal(found["logits"], expected["logits"])
    assert module.cudart.allocated == {}
    assert module.cudart.streams == set()


def test_record_says_what_the_plan_was_made_of(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    engines.build(
        export_dir,
        TARGET,
        graphs=["one"],
        options=EngineOptions(workspace_bytes=1 << 20, tf32=True),
    )
    plan = trt_version(export_dir, "one")
    record = read_engine_record(plan)
    assert plan.name == "one.jetson-orin.trt10.3.0.plan"
    assert (record.library, record.built_on) == ("tensorrt-double", "device")
    assert record.capabilities == ["8.7"]
    assert (record.tensorrt, record.target, record.precision) == ("10.3.0", TARGET, "float32")
    assert (record.gpu.name, record.gpu.compute_capability) == ("Orin (double)", "8.7")
    assert (record.cuda.driver, record.cuda.runtime) == ("12.6", "12.6")
    assert record.flags == ["STRONGLY_TYPED", "TF32"]
    assert record.settings["workspace_bytes"] == 1 << 20
    assert record.plan.sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    for file, digest in {**record.onnx, **record.weights}.items():
        assert hashlib.sha256((export_dir / file).read_bytes()).hexdigest() == digest
    assert set(record.weights) == {"weights/base.safetensors", "weights/one.safetensors"}
    assert record.inputs["input_ids"].shape == [-1, -1]
    assert record.outputs["logits"].dtype == "float32"
    assert record.peak_host_bytes > 1 << 20
    assert_intact(export_dir)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tf32": True, "version_compatible": True, "strip_weights": True},
        {"refit": True, "hardware_compatibility": "ampere+", "optimization_level": 5},
    ],
)
def test_the_builder_has_the_flags_that_a_dry_run_says(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    module = install_double(monkeypatch)
    module.cudart.name, module.cudart.capability = "NVIDIA A10 (double)", (8, 6)
    export_dir = export("merged")
    chosen = EngineOptions(**options)
    (planned,) = engines.plan_build(export_dir, "a10", graphs=["base"], options=chosen)
    (record,) = engines.build(export_dir, "a10", graphs=["base"], options=chosen)
    tf32 = ["TF32"] if options.get("tf32") else []
    said = [flag for flag in planned["flags"] if flag != "-TF32"]
    assert sorted(record["flags"]) == sorted([*said, *tf32])
    assert ("-TF32" in planned["flags"]) == (not tf32)
    assert record["settings"] == planned["settings"]


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_swappable_engine_takes_adapters(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    module = install_double(monkeypatch)
    export_dir = export("swappable")
    engines.build(export_dir, TARGET)
    manifest = read_manifest(export_dir)
    feeds = texts(2, 9)
    base = OrtRunner(export_dir / "base.onnx").run(feeds)["logits"]
    swappable = OrtRunner(export_dir / "swappable.onnx")
    with open_trt(export_dir, manifest, "swappable", TARGET, cuda_graphs=cuda_graphs) as graph:
        assert graph.inputs == ("input_ids", "attention_mask")
        for name in ("one", "two", "one"):
            pack = read_pack(export_dir, manifest, name)
            expected = swappable.with_adapter(pack).run(feeds)["logits"]
            assert np.abs(expected - base).max() > 1e-3
            for _ in range(3):
                found = graph.with_adapter(pack).run(feeds)["logits"]
                np.testing.assert_allclose(found, expected, atol=1e-6)
        for _ in range(3):
            np.testing.assert_allclose(graph.run(feeds)["logits"], base, atol=1e-6)
    assert (module.cudart.launches > 0) == cuda_graphs
    assert module.cudart.executables == {}


def test_a_graph_that_is_not_rewritten_would_compute_the_base(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser drops inputs that are initializers too: without the rewrite they are gone."""
    install_double(monkeypatch)
    export_dir = export("swappable")
    manifest = read_manifest(export_dir)
    (job,) = jobs_of(export_dir, manifest, TARGET, ["swappable"], EngineOptions())
    names = {each for each in job.settings.profiles[0] if ".lora_" in each}
    assert len(names) == 8
    kept = {k: v for k, v in job.settings.profiles[0].items() if k.startswith(("input", "atten"))}
    record = build_on_device(
        replace(job, model=None, settings=replace(job.settings, profiles=(kept,)))
    )
    assert set(record["inputs"]) == {"input_ids", "attention_mask"}
    assert names <= set(build_on_device(job)["inputs"])


def test_decoder_has_a_profile_for_prefill_and_one_for_steps(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("decoder")
    engines.build(export_dir, TARGET, graphs=["one"])
    manifest = read_manifest(export_dir)
    reference = OrtRunner(export_dir / "one.onnx")
    ids = np.random.default_rng(1).integers(3, 200, (2, 12))
    with open_trt(export_dir, manifest, "one", TARGET) as graph:
        context = graph.runner._context
        used = []
        past: dict[str, Any] = {
            name: np.zeros((2, 4, 0, 8), np.float32)
            for name in graph.inputs
            if name.startswith("past_key_values.")
        }
        for feeds, found in run_in_pieces(graph, ids, past):
            for name, values in reference.run(feeds).items():
                np.testing.assert_array_equal(found[name], values)
            used.append(context._profile)
    assert used == [0, 1, 1]


def test_an_encoder_and_its_decoder_are_run_as_one(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = export("pair")
    records = engines.build(export_dir, TARGET, graphs=["base", "one"])
    assert {each["graph"] for each in records} == {
        f"{part}.{name}" for part in ("encoder", "decoder") for name in ("base", "one")
    }
    manifest = read_manifest(export_dir)
    written = np.random.default_rng(3).integers(3, 200, (2, 7))
    logits = {}
    for name in ("base", "one"):
        reference = OrtEncoderDecoder(export_dir, manifest.graphs[name])
        expected = decode_in_pieces(reference.encode(texts(2, 9))[0], written)
        with open_trt(export_dir, manifest, name, TARGET) as graph:
            assert graph.inputs == ("input_ids", "attention_mask", "decoder_input_ids")
            feeds = {**texts(2, 9), "decoder_input_ids": written}
            for _ in range(2):
                found = graph.run(feeds)["logits"]
                np.testing.assert_allclose(found, expected, atol=1e-6)
            with pytest.raises(LoraExportError, match="also read 'decoder_input_ids'"):
                graph.run(texts(2, 9))
        logits[name] = found
    assert np.abs(logits["one"] - logits["base"]).max() > 1e-3
    assert module.cudart.allocated == {}
    trt_version(export_dir, "decoder.one").unlink()
    with pytest.raises(LoraExportError, match=r"no plan .*decoder\.one"):
        open_trt(export_dir, manifest, "one", TARGET)
    assert module.cudart.allocated == {}


def test_a_static_cache_is_written_by_the_engine(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("static")
    engines.build(export_dir, TARGET, graphs=["one"])
    reference = OrtRunner(export_dir / "one.onnx")
    ids = np.random.default_rng(1).integers(3, 200, (2, 12))
    with open_trt(export_dir, read_manifest(export_dir), "one", TARGET) as graph:
        buffers = {name: [4, 24, 8, "float32"] for name in graph.inputs if name.startswith(PAST)}
        assert len(buffers) == 4
        past = {n: v for n, v in with_buffers({"input_ids": ids}, buffers).items() if n in buffers}
        used = []
        for feeds, found in run_in_pieces(graph, ids, past, static=24):
            for name, values in reference.run(feeds).items():
                np.testing.assert_array_equal(found[name], values)
            used.append(graph.runner._context._profile)
    assert used == [0, 1, 1]


def test_profiles_of_the_user_bound_the_shapes(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    options = EngineOptions(profiles=[{"batch": (1, 2, 4), "sequence": (8, 16, 32)}])
    engines.build(export_dir, TARGET, graphs=["one"], options=options)
    manifest = read_manifest(export_dir)
    with open_trt(export_dir, manifest, "one", TARGET) as graph:
        graph.run(texts(4, 32))
        with pytest.raises(
            LoraExportError, match=r"'input_ids' of shape \[5, 8\].*\[1, 8\] to"
        ) as error:
            graph.run(texts(5, 8))
        assert error.value.exit_code == 2
        with pytest.raises(LoraExportError, match="also reads 'attention_mask'"):
            graph.run({"input_ids": texts(1, 8)["input_ids"]})
        with pytest.raises(LoraExportError, match="'input_ids' is float32, the engine reads int64"):
            graph.run({**texts(1, 8), "input_ids": np.zeros((1, 8), np.float32)})
        narrow = {name: each.astype(np.int32) for name, each in texts(2, 8).items()}
        np.testing.assert_array_equal(graph.run(narrow)["logits"], graph.run(texts(2, 8))["logits"])


def test_device_buffers_are_used_again(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = export("merged")
    engines.build(export_dir, TARGET, graphs=["one"])
    with open_trt(export_dir, read_manifest(export_dir), "one", TARGET) as graph:
        graph.run(texts(4, 32))
        before = dict(module.cudart.allocated)
        for shape in ((1, 1), (4, 32), (2, 16)):
            graph.run(texts(*shape))
        assert set(module.cudart.allocated) == set(before)
        graph.run(texts(8, 64))
        assert set(module.cudart.allocated) != set(before)
    with pytest.raises(LoraExportError, match="was closed"):
        graph.run(texts(1, 1))


def test_a_recording_is_replayed_with_the_addresses_it_was_made_for(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = export("merged")
    engines.build(export_dir, TARGET, graphs=["one"])
    reference = OrtRunner(export_dir / "one.onnx")
    with open_trt(export_dir, read_manifest(export_dir), "one", TARGET, cuda_graphs=True) as graph:
        for turn, shape in enumerate([(1, 4)] * 3 + [(4, 32)] * 3 + [(1, 4)] * 3):
            feeds = texts(*shape, seed=turn)
            np.testing.assert_array_equal(
                graph.run(feeds)["logits"], reference.run(feeds)["logits"]
            )
        assert module.cudart.launches == 6


def test_stripped_plan_gets_its_weights_from_the_graph(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    options = EngineOptions(strip_weights=True)
    (record,) = engines.build(export_dir, TARGET, graphs=["one"], options=options)
    assert {"STRIP_PLAN", "REFIT_IDENTICAL"} <= set(record["flags"])
    feeds = texts(2, 9)
    with open_trt(export_dir, read_manifest(export_dir), "one", TARGET) as graph:
        expected = OrtRunner(export_dir / "one.onnx").run(feeds)["logits"]
        np.testing.assert_array_equal(graph.run(feeds)["logits"], expected)


def test_version_compatible_plan_is_loaded_by_a_later_version(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    export_dir = export("merged")
    with monkeypatch.context() as patch:
        install_double(patch, "10.3.0")
        options = EngineOptions(version_compatible=True)
        engines.build(export_dir, TARGET, graphs=["one"], options=options)
    plan = trt_version(export_dir, "one")
    for suffix in (".plan", ".json"):  # carried to where a later version looks for its own
        plan.with_suffix(suffix).rename(plan.with_name(f"one.{TARGET}.trt10.13.3.9{suffix}"))
    install_double(monkeypatch, "10.13.3.9")
    with open_trt(export_dir, read_manifest(export_dir), "one", TARGET) as graph:
        assert graph.run(texts(1, 4))["logits"].shape == (1, 3)


def test_timing_cache_is_kept_and_used(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    said: list[str] = []

    class Told:
        def start(self, what: str, total_bytes: int | None = None) -> None:
            said.append(what)

        def advance(self, count_bytes: int) -> None: ...
        def note(self, text: str) -> None: ...

    cache = export_dir / "engines" / f"{TARGET}.trt10.3.0.timing"
    engines.build(export_dir, TARGET, graphs=["one"], progress=Told())
    assert cache.is_file()
    assert "with a timing cache" not in " ".join(said)
    engines.build(export_dir, TARGET, graphs=["two"], progress=Told())
    assert said[-5:].count(f"building for {TARGET} with a timing cache") == 1
    cache.write_bytes(b"rubbish")  # made anew
    engines.build(export_dir, TARGET, graphs=["two"], progress=Told())
    assert cache.read_bytes() != b"rubbish"
    assert_intact(export_dir)


def test_removing_an_adapter_takes_its_engines_along(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_export.commands.remove import remove

    install_double(monkeypatch)
    export_dir = export("merged")
    engines.build(export_dir, TARGET)
    assert len(list((export_dir / "engines").glob("*.plan"))) == 2
    remove(export_dir, "one")
    assert sorted(each.name for each in (export_dir / "engines").iterdir()) == [
        f"{TARGET}.trt10.3.0.timing",
        f"two.{TARGET}.trt10.3.0.json",
        f"two.{TARGET}.trt10.3.0.plan",
    ]
    assert_intact(export_dir)


def test_an_operator_that_the_parser_refuses_is_named(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    manifest = read_manifest(export_dir)
    (job,) = jobs_of(export_dir, manifest, TARGET, ["one"], EngineOptions())
    model = onnx.load(export_dir / "one.onnx", load_external_data=False)
    model.graph.node[0].op_type, model.graph.node[0].name = "Mish2", "odd"
    with pytest.raises(LoraExportError, match=r"'odd' \(Mish2\)") as error:
        build_on_device(replace(job, model=model.SerializeToString()))
    assert error.value.exit_code == 4
    assert "preflight" in (error.value.hint or "")


def test_dry_run_needs_no_tensorrt_and_writes_nothing(export: Callable[[str], Path]) -> None:
    export_dir = export("swappable")
    before = sorted(export_dir.rglob("*"))
    (row,) = engines.plan_build(export_dir, TARGET)
    assert row["rewritten"] is True
    assert json.dumps(row)
    assert sorted(export_dir.rglob("*")) == before
