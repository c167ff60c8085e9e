"""Quantized exports are verified: what is exact, what survives, what is refused by name."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.commands.verify import verify
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import sha256_of_file
from lora_export.core.manifest import read_manifest
from lora_export.core.safetensors_file import read_header
from lora_export.ondevice.judge.golden_files import read_golden
from lora_export.runtime.ort import OrtRunner
from lora_export.verification import quantized_check
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import with_buffers
from tests.cli.running import call
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.reports.quantization_report import QuantizationRow
    from tests.helpers.models import TinyModels

CLASSES, TEXT = "text-classification", "text-generation"
QUANTIZED = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The modules whose weights are large enough to be quantized."""
TARGET = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def decoder(tiny: TinyModels) -> tuple[Path, Path]:
    base = tiny.base("llama", TEXT)
    return base, tiny.adapter(base, task=TEXT, labels_count=None)


@pytest.fixture(scope="module")
def merged(decoder: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("quantized") / "out"
    outcome = build(
        decoder[0], {"one": decoder[1]}, export_dir, task=TEXT, quantize="int4",
        verify={"enabled": True},
    )  # fmt: skip
    assert outcome.exit_code(strict=True) == 0
    return export_dir


@pytest.fixture
def copied(merged: Path, tmp_path: Path) -> Path:
    shutil.copytree(merged, tmp_path / "out")
    return tmp_path / "out"


def row_of(outcome: Any, graph: str, adapter: str | None = None) -> QuantizationRow:
    report = outcome.reports.quantization
    assert report is not None
    row: QuantizationRow = report.graphs[graph]
    return row if adapter is None else row.adapters[adapter]


def test_a_build_says_what_is_exact_and_what_is_left(merged: Path) -> None:
    rows = json.loads((merged / "reports/quantization.json").read_text())["graphs"]
    assert list(rows) == ["base", "one"]
    for name, row in rows.items():
        exact = row["exactness"]
        assert (
            exact["verdict"] == exact["weights"]["verdict"] == exact["graph"]["verdict"] == "pass"
        )
        assert exact["graph"]["relative_l2"] < 1e-5
        assert exact["graph"]["accuracy_level"] == 0
        assert row["loss"]["accuracy_level"] == 4
        assert 0.01 < row["loss"]["relative_l2"] < 0.5
        assert row["loss"]["perplexity"] > 1
        assert row["quantized_bytes"] < 0.5 * row["float_bytes"], name
    own = rows["one"]["layers"][TARGET]
    assert own["gain"] == pytest.approx(1, abs=0.1)
    assert own["cosine"] > 0.9
    assert rows["base"]["layers"][TARGET]["gain"] is None
    assert 0.8 < rows["one"]["loss"]["gain"] < 1.25
    manifest = read_manifest(merged)
    assert (manifest.graphs["one"].verification, manifest.graphs["one"].loss) == ("pass", "pass")
    assert (manifest.graphs["base"].verification, manifest.graphs["base"].loss) == (
        "pass", "ungated",
    )  # fmt: skip
    assert "Quantization" in (merged / "reports/report.html").read_text()


def test_golden_outputs_are_those_of_the_stored_weights(copied: Path) -> None:
    before = (copied / "reports/quantization.json").read_bytes()
    outcome = verify(copied)
    assert outcome.exit_code(strict=True) == 0
    assert outcome.reports.parity.graphs["one"].against == "golden outputs"
    assert outcome.reports.quantization is None
    assert (copied / "reports/quantization.json").read_bytes() == before
    assert read_manifest(copied).graphs["one"].loss == "pass"


def test_a_usual_session_rounds_and_an_exact_one_does_not(merged: Path) -> None:
    """The reason why exactness and loss are measured in two sessions."""
    kept = read_golden(merged / "golden/one.npz").cases[0]
    signature = feeding_of(merged, read_manifest(merged).graphs["one"]).signature
    feeds = with_buffers(kept, signature).feeds
    exact, usual = (
        OrtRunner(merged / "one.onnx", exact=each).run(feeds)["logits"] for each in (True, False)
    )
    difference = float(np.linalg.norm(exact - usual) / np.linalg.norm(exact))
    assert 1e-4 < difference < 0.1


def test_integers_of_other_weights_fail_by_name(copied: Path, decoder: tuple[Path, Path]) -> None:
    """One integer is off by two."""
    path = copied / "weights/one.safetensors"
    tensors, _ = read_header(path)
    raw = bytearray(path.read_bytes())
    raw[tensors[f"{TARGET}.quantized"].start_bytes + 5] ^= 2  # bit 1 of the low half
    path.write_bytes(raw)
    rehash(copied, "weights/one.safetensors")
    outcome = verify(copied, base=decoder[0], only=["one"])
    assert outcome.exit_code() == 5
    row = row_of(outcome, "one")
    assert row.exactness is not None
    assert row.exactness.weights is not None
    assert row.exactness.weights.differing == [TARGET]
    assert TARGET in outcome.reports.parity.graphs["one"].reason
    assert read_manifest(copied).graphs["one"].verification == "fail"


def test_weights_that_torch_does_not_have_leave_the_graph_unverified(
    copied: Path, decoder: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise UnsupportedError("the model in torch has no parameter 'x'")

    monkeypatch.setattr(quantized_check, "run_references", refuse)
    outcome = verify(copied, base=decoder[0], only=["one"])
    row = outcome.reports.parity.graphs["one"]
    assert (row.verdict, row.reason) == ("unverified", "the model in torch has no parameter 'x'")
    assert outcome.reports.quantization is None
    assert outcome.exit_code(strict=True) == 5


def rehash(export_dir: Path, file: str) -> None:
    path = export_dir / "lora_export.json"
    table = json.loads(path.read_text())
    table["files"][file] = sha256_of_file(export_dir / file)
    path.write_text(json.dumps(table))


def on_grid(base: Path, folder: Path) -> Path:
    """Return a checkpoint whose matrices are values that four bits hold exactly."""
    shutil.copytree(base, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    random = np.random.default_rng(0)
    for name, value in tensors.items():
        if value.ndim == 2 and "embed" not in name:
            integers = random.integers(-7, 8, value.shape)
            integers[:, ::16] = 7  # of each block of 16 or 32 inputs
            tensors[name] = (0.01 * integers).astype(np.float32)
    save_file(tensors, path, {"format": "pt"})
    return folder


def scaled(adapter: Path, folder: Path, factor: float) -> Path:
    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: v * (factor if "lora_B" in n else 1) for n, v in tensors.items()}, path)
    return folder


@pytest.mark.parametrize("mode", ["merged", pytest.param("swappable", marks=pytest.mark.slow)])
def test_an_update_below_the_grid_fails_by_name_merged_and_survives_swappable(
    tiny: TinyModels, decoder: tuple[Path, Path], tmp_path: Path, mode: str
) -> None:
    small = tiny.adapter(decoder[0], task=TEXT, labels_count=None, target_modules=QUANTIZED)
    base = on_grid(decoder[0], tmp_path / "base")
    adapter = scaled(small, tmp_path / "adapter", 0.04)
    outcome = build(
        base, {"tiny-update": adapter}, tmp_path / "out", task=TEXT, mode=mode, quantize="int4",
        verify={"enabled": True},
    )  # fmt: skip
    graph = "swappable" if mode == "swappable" else "tiny-update"
    assert outcome.reports.parity.graphs[graph].verdict == "pass"
    if mode == "swappable":
        row = row_of(outcome, "swappable", "tiny-update")
        assert row.verdict == "pass"
        assert row.loss is not None
        assert row.loss.gain == pytest.approx(1, abs=0.05)
        assert row.layers[TARGET].gain is None
        return
    assert outcome.exit_code() == 5
    row = row_of(outcome, "tiny-update")
    assert row.verdict == "fail"
    assert "'tiny-update' does not survive quantization: the gain" in row.reason
    assert "weakest layers: model.layers." in row.reason
    assert row.layers[TARGET].gain is not None
    assert row.layers[TARGET].gain < 0.5
    assert read_manifest(tmp_path / "out").graphs["tiny-update"].loss == "fail"


def test_the_command_ends_with_5_and_says_what_helps(
    copied: Path, decoder: tuple[Path, Path], capsys: Any
) -> None:
    done = call(capsys, "verify", copied, "--base", decoder[0], "--max-loss", "0.001")
    assert done.code == 5
    assert "quantization of base: fail: the relative L2 error" in done.out
    assert "What helps: keep these layers in float (quantize.keep), int8" in done.out
    assert read_manifest(copied).graphs["base"].loss == "fail"
    assert read_manifest(copied).graphs["base"].verification == "pass"


@pytest.mark.slow
def test_adapters_of_a_shared_graph_have_rows_of_their_own(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", CLASSES)
    adapters = {
        "plain": tiny.adapter(base, seed=5),
        "dora": tiny.adapter(base, seed=6, r=3, use_dora=True),
    }
    export_dir = tmp_path / "out"
    outcome = build(
        base, adapters, export_dir, mode="swappable", quantize="int8", verify={"enabled": True}
    )
    assert outcome.exit_code() == 0
    rows = row_of(outcome, "swappable").adapters
    assert list(rows) == ["plain", "dora"]
    for row in rows.values():
        assert row.loss is not None
        assert row.loss.gain == pytest.approx(1, abs=0.05)
        assert row.exactness is not None
        assert row.exactness.verdict == "pass"
        assert any(each.error_over_delta for each in row.layers.values())
    again = verify(export_dir, base=base, only=["dora"])
    assert list(row_of(again, "swappable").adapters) == ["dora"]
    kept = json.loads((export_dir / "reports/quantization.json").read_text())["graphs"]["swappable"]
    assert list(kept["adapters"]) == ["plain", "dora"]
    manifest = read_manifest(export_dir)
    assert manifest.graphs["swappable"].loss == "pass"
    packs = {name: each.pack for name, each in manifest.adapters.items()}
    assert {name: each and each.loss for name, each in packs.items()} == {
        "plain": "pass", "dora": "pass",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "hint"),
    [({"min_gain": 0.9}, "--base BASE"), ({"max_metric_drop": 0.01}, "--dataset")],
)
def test_limits_need_what_they_are_held_against(
    merged: Path, decoder: tuple[Path, Path], limits: dict[str, Any], hint: str
) -> None:
    base = None if hint == "--base BASE" else decoder[0]
    with pytest.raises(UsageError) as caught:
        verify(merged, base=base, **limits)
    assert hint in str(caught.value.hint)


@pytest.mark.slow
def test_a_data_set_scores_the_float_and_the_quantized_model(
    tiny: TinyModels, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", TEXT, tokenizer=True)
    export_dir, data = tmp_path / "out", tmp_path / "texts.jsonl"
    random = np.random.default_rng(0)
    texts = (" ".join(f"w{i}" for i in random.integers(3, 200, 12)) for _ in range(24))
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    adapter = tiny.adapter(base, task=TEXT, labels_count=None)
    build(base, {"one": adapter}, export_dir, task=TEXT, quantize="int4")
    done = call(
        capsys, "verify", export_dir, "--base", base, "--dataset", data, "--max-metric-drop", "0.5"
    )
    assert done.code == 0, done.err
    row = json.loads((export_dir / "reports/quantization.json").read_text())["graphs"]["one"]
    scored = row["dataset"]
    assert scored["metric"] == "perplexity"
    assert scored["reference"] != scored["graph"]
    assert scored["base"] is not None
    (gate,) = [each for each in row["gates"] if each["gate"] == "max_metric_drop"]
    assert gate["value"] == pytest.approx(scored["difference"] / scored["reference"])
    assert gate["verdict"] == "pass"
    assert "perplexity on 24 held-out examples" in done.out
    parity = json.loads((export_dir / "reports/parity.json").read_text())["graphs"]["one"]
    assert parity["verdict"] == "pass"
    assert "dataset" not in parity
