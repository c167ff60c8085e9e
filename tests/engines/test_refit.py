"""Adapters put into a built engine: exact, whole or not at all, and the base comes back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.commands import engines
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.engine_record import read_engine_record
from lora_export.core.errors import AdapterError, LoraExportError, UnsupportedError
from lora_export.core.manifest import read_manifest
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.refit_values import base_supply, refit_values
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.plan_opening import open_live
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.trt import open_trt
from tests.cli.exports import assert_intact
from tests.cli.running import call
from tests.engines.test_engine_build import TARGET, texts, trt_version
from tests.helpers.builds import build
from tests.helpers.double import install_double

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.models import TinyModels

QUERY = "roberta.encoder.layer.0.attention.self.query.weight"
QUERY_BIAS = "roberta.encoder.layer.0.attention.self.query.bias"


def logits(export_dir: Path, graph: str) -> np.ndarray[Any, Any]:
    return np.asarray(OrtRunner(export_dir / f"{graph}.onnx").run(texts(2, 9))["logits"])


def refittable(export: Callable[[str], Path]) -> Path:
    export_dir = export("merged")
    engines.build(export_dir, TARGET, options=EngineOptions(refit=True))
    return export_dir


def opened(export_dir: Path) -> Any:
    manifest = read_manifest(export_dir)
    plan = trt_version(export_dir).relative_to(export_dir).as_posix()
    live, record = open_live(
        export_dir, plan, sha256=manifest.files, fingerprint=manifest.base.fingerprint
    )
    return live, record, manifest


def test_only_adapted_weights_are_refittable_and_the_map_is_kept(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    record = read_engine_record(trt_version(refittable(export)))
    assert "REFIT_INDIVIDUAL" in record.flags
    names = {
        f"roberta.encoder.layer.{i}.attention.self.{m}.weight"
        for i in (0, 1)
        for m in ("query", "value")
    }
    heads = {each for each in record.refit if each.startswith("classifier.")}
    assert set(record.refit) == names | heads
    assert len(heads) == 4
    row = record.refit[QUERY]
    assert row.parameters == [QUERY]
    assert row.transform == ["transpose"]  # Linear's [out, in] is stored as the MatMul reads it
    assert (row.shape, row.dtype, row.neighbour) == ([32, 32], "float32", False)


def test_an_adapters_plan_is_the_graph_of_it(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = refittable(export)
    base_plan = trt_version(export_dir).read_bytes()
    for name in ("one", "two"):
        record = engines.refit(export_dir, TARGET, name)
        assert record["tool"] == "refit"
        assert record["adapter"]["adapter"] == name
        with open_trt(export_dir, read_manifest(export_dir), name, TARGET) as graph:
            found = graph.run(texts(2, 9))["logits"]
        np.testing.assert_array_equal(found, logits(export_dir, name))
    assert trt_version(export_dir).read_bytes() == base_plan
    assert module.builds == 1
    assert_intact(export_dir)


def test_a_refit_is_compared_with_the_golden_outputs(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    base = tiny.base("roberta", "text-classification")
    adapters = {"one": tiny.adapter(base, r=4, seed=1), "two": tiny.adapter(base, r=2, seed=2)}
    export_dir = tmp_path / "export"
    build(base, adapters, export_dir, task="text-classification", verify={"enabled": True})
    install_double(monkeypatch)
    engines.build(export_dir, TARGET, options=EngineOptions(refit=True))
    before = sorted(path.name for path in (export_dir / "engines").iterdir())
    values = refit_values
    monkeypatch.setattr(
        "lora_export.engines.refit_values.refit_values",
        lambda export_dir, manifest, record, name, source: values(
            export_dir, manifest, record, "two" if name == "one" else name, source
        ),
    )
    result = call(capsys, "refit", export_dir, "--target", TARGET, "--adapter", "one")
    assert result.code == 5
    assert "does not compute 'one'" in result.err
    assert sorted(path.name for path in (export_dir / "engines").iterdir()) == before
    result = call(capsys, "refit", export_dir, "--target", TARGET, "--adapter", "two")
    assert result.code == 0, result.err
    assert "compared with its golden outputs" in result.err
    narrow = ["--profile", "batch=1:1:1,sequence=1:4:4"]
    assert call(capsys, "build", export_dir, "--target", TARGET, "--refit", *narrow).code == 0
    result = call(capsys, "refit", export_dir, "--target", TARGET, "--adapter", "two")
    assert result.code == 0, result.err
    assert "was not compared: no profile covers" in result.err


def test_the_command(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    arguments = ["--target", TARGET, "--adapter", "one"]
    result = call(capsys, "refit", export_dir, *arguments)
    assert result.code == 3
    assert "no build record" in result.message
    assert call(capsys, "build", export_dir, "--target", TARGET, "--refit").code == 0
    result = call(capsys, "refit", export_dir, *arguments, "--json")
    assert result.code == 0, result.err
    assert result.document["engine"]["adapter"]["adapter"] == "one"
    result = call(capsys, "refit", export_dir, "--target", "auto", "--adapter", "two")
    assert result.code == 0, result.err
    assert "engines/two.jetson-orin.trt10.3.0.plan" in result.out
    assert "TensorRT did not run" in result.out
    assert call(capsys, "refit", export_dir / "nowhere", *arguments).code == 3
    assert call(capsys, "refit", export_dir, "--target", "jetson", "--adapter", "one").code == 2
    result = call(capsys, "refit", export_dir, "--target", TARGET, "--adapter", "six=/nowhere")
    assert result.code == 3
    assert "/nowhere" in result.message


def test_weights_are_swapped_in_an_engine_in_use_and_the_base_comes_back(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = refittable(export)
    live, record, manifest = opened(export_dir)
    base = live.run(texts(2, 9))["logits"]
    np.testing.assert_array_equal(base, logits(export_dir, "base"))
    for name in ("one", "two", "one"):
        live.use(refit_values(export_dir, manifest, record, name, None))
        np.testing.assert_array_equal(live.run(texts(2, 9))["logits"], logits(export_dir, name))
    live.use_base()
    np.testing.assert_array_equal(live.run(texts(2, 9))["logits"], base)
    live.use(refit_values(export_dir, manifest, record, "base", None))  # the same by a refit
    np.testing.assert_array_equal(live.run(texts(2, 9))["logits"], base)
    live.close()
    assert module.cudart.allocated == {}


def test_every_refittable_weight_has_a_value(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that an adapter leaves alone go back to the base, whatever the engine had there."""
    install_double(monkeypatch)
    export_dir = refittable(export)
    live, record, manifest = opened(export_dir)
    live.close()
    rows = {name for name, row in record["refit"].items() if not row.get("neighbour")}
    supply = base_supply(export_dir, record)
    for name in ("base", "one"):
        assert set(refit_values(export_dir, manifest, record, name, None)) == rows
    for name, values in refit_values(export_dir, manifest, record, "base", None).items():
        np.testing.assert_array_equal(values, supply(name))


def test_a_refit_that_breaks_off_leaves_the_engine_in_use_as_it_was(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = refittable(export)
    live, record, manifest = opened(export_dir)
    live.use(refit_values(export_dir, manifest, record, "one", None))
    runner = live.runner
    module.refit_fails_after = 3
    with pytest.raises(DeviceError, match="half changed"):
        live.use(refit_values(export_dir, manifest, record, "two", None))
    assert live.runner is runner
    np.testing.assert_array_equal(live.run(texts(2, 9))["logits"], logits(export_dir, "one"))
    with pytest.raises(DeviceError, match="half changed"):
        engines.refit(export_dir, TARGET, "two")
    assert list((export_dir / "engines").glob("two.*")) == []
    assert_intact(export_dir)


def test_fused_neighbours_are_recorded_and_supplied_from_the_base(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    module.fused = {QUERY: [QUERY_BIAS]}
    export_dir = refittable(export)
    record = read_engine_record(trt_version(export_dir))
    assert record.refit[QUERY_BIAS].neighbour is True
    assert record.refit[QUERY_BIAS].parameters == [QUERY_BIAS]
    table = engines.refit(export_dir, TARGET, "one")
    assert table["adapter"]["supplied"] == [QUERY_BIAS]
    with open_trt(export_dir, read_manifest(export_dir), "one", TARGET) as graph:
        np.testing.assert_array_equal(graph.run(texts(2, 9))["logits"], logits(export_dir, "one"))


def test_a_weight_that_is_asked_for_and_not_known_is_named(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    module.fused = {QUERY: [QUERY_BIAS]}
    export_dir = refittable(export)
    live, record, manifest = opened(export_dir)
    values = refit_values(export_dir, manifest, record, "one", None)
    with pytest.raises(DeviceError, match=f"asks for the weight '{QUERY_BIAS}'"):
        live.use(values)
    live.use(values, base_supply(export_dir, record))
    np.testing.assert_array_equal(live.run(texts(2, 9))["logits"], logits(export_dir, "one"))


def test_what_was_not_marked_is_refused(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = refittable(export)
    live, _, _ = opened(export_dir)
    name = "roberta.encoder.layer.0.attention.self.key.weight"
    with pytest.raises(DeviceError, match=f"'{name}' of the engine was not marked") as error:
        live.use({name: np.zeros((32, 32), np.float32)})
    assert error.value.exit_code == 4
    with pytest.raises(DeviceError, match="has 4 values, the engine's has 1024"):
        live.use({QUERY: np.zeros((2, 2), np.float32)})
    with pytest.raises(DeviceError, match="is float16, the engine reads float32"):
        live.use({QUERY: np.zeros((32, 32), np.float16)})


def test_an_adapter_that_the_export_does_not_hold(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tiny: TinyModels
) -> None:
    install_double(monkeypatch)
    export_dir = refittable(export)
    base = tiny.base("roberta", "text-classification")
    folder = tiny.adapter(base, r=4, seed=1)  # the same as "one", under another name
    engines.refit(export_dir, TARGET, "three", source=AdapterSpec(source=str(folder)))
    plan = trt_version(export_dir, "three")
    assert read_engine_record(plan).onnx.keys() == {"base.onnx"}
    manifest = read_manifest(export_dir)
    from lora_export.ondevice.trt.plan_opening import open_plan

    relative = plan.relative_to(export_dir).as_posix()
    with open_plan(
        export_dir, relative, sha256=manifest.files, fingerprint=manifest.base.fingerprint
    ) as runner:
        found = runner.run(texts(2, 9))["logits"]
    np.testing.assert_allclose(found, logits(export_dir, "one"), atol=1e-6)
    with pytest.raises(UnsupportedError, match="has a graph 'one'"):
        engines.refit(export_dir, TARGET, "one", source=AdapterSpec(source=str(folder)))


def test_an_adapter_beyond_the_marked_weights_is_refused(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tiny: TinyModels
) -> None:
    install_double(monkeypatch)
    export_dir = refittable(export)
    base = tiny.base("roberta", "text-classification")
    wider = tiny.adapter(base, target_modules=["query", "key"], seed=5)
    with pytest.raises(
        UnsupportedError, match=r"changes 'roberta\.encoder\.layer\.0\..*key\.weight'"
    ):
        engines.refit(export_dir, TARGET, "wider", source=AdapterSpec(source=str(wider)))
    assert list((export_dir / "engines").glob("wider.*")) == []


def test_refit_of_what_is_not_there_or_not_refittable(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    with pytest.raises(LoraExportError, match="no build record"):
        engines.refit(export_dir, TARGET, "one")
    with pytest.raises(AdapterError, match="has no adapter 'nine'"):
        engines.refit(export_dir, TARGET, "nine")
    engines.build(export_dir, TARGET, graphs=["base"], options=EngineOptions(refit=True))
    path = trt_version(export_dir).with_suffix(".json")
    table = json.loads(path.read_text())
    del table["refit"][QUERY]["shape"]
    path.write_text(json.dumps(table))
    with pytest.raises(LoraExportError, match=r"is damaged: refit\..*shape") as error:
        engines.refit(export_dir, TARGET, "one")
    assert error.value.exit_code == 3
    engines.build(export_dir, TARGET, graphs=["base"])
    with pytest.raises(UnsupportedError, match="was not built to be refitted"):
        engines.refit(export_dir, TARGET, "one")


def test_a_plan_without_weights_is_refitted_into_one_that_has_them(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT serializes an engine that was built without weights without them, unless told."""
    install_double(monkeypatch)
    export_dir = export("merged")
    engines.build(export_dir, TARGET, options=EngineOptions(refit=True, strip_weights=True))
    assert {"STRIP_PLAN", "REFIT_INDIVIDUAL"} <= set(
        read_engine_record(trt_version(export_dir)).flags
    )
    engines.refit(export_dir, TARGET, "one")
    assert read_engine_record(trt_version(export_dir, "one")).settings["strip_weights"] is False
    for name in ("one", "base"):
        with open_trt(export_dir, read_manifest(export_dir), name, TARGET) as graph:
            np.testing.assert_array_equal(
                graph.run(texts(2, 9))["logits"], logits(export_dir, name)
            )


def test_a_head_that_only_adapters_bring_is_put_into_the_engine(
    monkeypatch: pytest.MonkeyPatch, tiny: TinyModels, tmp_path: Path
) -> None:
    install_double(monkeypatch)
    task, export_dir = "text-classification", tmp_path / "out"
    base = tiny.base("roberta", "feature-extraction")
    adapters = {"one": tiny.adapter(base, seed=1), "two": tiny.adapter(base, seed=2)}
    build(base, adapters, export_dir, task=task)
    assert read_manifest(export_dir).graphs["base"].missing
    with pytest.raises(UnsupportedError, match="'base' has no values for 'classifier"):
        engines.build(export_dir, TARGET, graphs=["base"])
    engines.build(export_dir, TARGET, options=EngineOptions(refit=True))
    for name in ("one", "two"):
        engines.refit(export_dir, TARGET, name)
        with open_trt(export_dir, read_manifest(export_dir), name, TARGET) as graph:
            np.testing.assert_array_equal(
                graph.run(texts(2, 9))["logits"], logits(export_dir, name)
            )
    with pytest.raises(UnsupportedError, match="'base' has no values for 'classifier"):
        open_trt(export_dir, read_manifest(export_dir), "base", TARGET)
