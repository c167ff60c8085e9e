"""``bench`` as a user runs it: the table, the report, the gate and its exit codes."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_export.latency import grid as run_module
from lora_export.latency.bench_report import BenchReport
from tests.cli.exports import manifest_of
from tests.cli.running import call, command
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ("--rounds", 6, "--max-rounds", 6, "--length", 8, "--no-startup", "--quiet")


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.base("gpt2", "text-generation")


@pytest.fixture(scope="module")
def adapter(tiny, base):
    return tiny.adapter(base, task="text-generation")


@pytest.fixture(scope="module")
def built(base, adapter, tmp_path_factory):
    """A decoder with a cache and one adapter; not to be changed."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    build(base, {"one": adapter}, folder, task="text-generation")
    return folder


@pytest.fixture
def export(built, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "out")


def slowed(monkeypatch, factor: float, *, of: str) -> None:
    """Make the recorded times of one subject `factor` times as long."""
    original = run_module.Interleaved

    class Slowed(original):
        @property
        def times_ms(self):
            return {k: v * (factor if k == of else 1) for k, v in super().times_ms.items()}

    monkeypatch.setattr(run_module, "Interleaved", Slowed)


def steady(monkeypatch) -> None:
    """Make every run take the same time, so that what is judged is the judgement."""
    original = run_module.Interleaved

    class Steady(original):
        @property
        def times_ms(self):
            noise = np.random.default_rng(0)
            return {
                key: 2.0 + 0.01 * noise.standard_normal(len(each))
                for key, each in super().times_ms.items()
            }

    monkeypatch.setattr(run_module, "Interleaved", Steady)


def test_the_report_has_every_subject_cell_and_figure(export, capsys) -> None:
    result = call(capsys, "bench", export, "--rounds", 6, "--batch", "1,2", "--length", "4,8",
                  "--past", 16, "--quiet", "--json")  # fmt: skip
    assert result.code == 0, result.err
    written = (export / "reports" / "bench.json").read_bytes()
    found = BenchReport.model_validate(result.document)
    assert found == BenchReport.model_validate_json(written)
    assert manifest_of(export)["files"]["reports/bench.json"]
    assert list(found.subjects) == ["ort-cpu:base", "ort-cpu:one"]
    assert [cell.name for cell in found.cells] == [
        "prefill 1×4", "prefill 1×8", "prefill 2×4", "prefill 2×8",
        "decode 1×1 after 16", "decode 2×1 after 16",
    ]  # fmt: skip
    one = found.subjects["ort-cpu:one"]
    manifest = manifest_of(export)
    assert one.files["one.onnx"] == manifest["graphs"]["one"]["sha256"]
    assert set(one.files) == {"one.onnx", *manifest["graphs"]["one"]["weights"]}
    assert one.startup is not None
    assert one.startup.session_ms > 0
    assert one.startup.peak_bytes > one.startup.imported_bytes > 10_000_000
    for cell in found.cells:
        for row in cell.times.values():
            samples = np.array(row.samples_ms)
            assert len(samples) == cell.rounds == 6
            assert row.median_ms == pytest.approx(np.median(samples), abs=1e-5)
            assert row.p99_ms == pytest.approx(np.quantile(samples, 0.99), abs=1e-5)
            assert row.per_second == pytest.approx(cell.batch / row.median_ms * 1e3)
            assert row.tokens_per_second == pytest.approx(row.per_second * cell.length)
        (ratio,) = cell.ratios
        assert (ratio.subject, ratio.over) == ("ort-cpu:one", "ort-cpu:base")
    assert found.environment.packages["onnxruntime"]
    assert found.gate is None


def test_a_slower_adapter_fails_with_6_and_is_named(export, capsys, monkeypatch) -> None:
    slowed(monkeypatch, 3.0, of="ort-cpu:one")
    result = call(capsys, "bench", export, "--rounds", 30, "--max-rounds", 400, "--length", 8,
                  "--no-startup", "--quiet", "--max-ratio", 1.05)  # fmt: skip
    assert result.code == 6
    assert "gate: fail" in result.out
    assert "ort-cpu:one: the interval [" in result.out
    assert "lies above the limit 1.05" in result.out


def test_against_runs_the_graphs_of_both_exports(export, built, capsys, monkeypatch) -> None:
    steady(monkeypatch)
    result = call(capsys, "bench", export, "--against", built, *QUICK, "--json")
    assert result.code == 0
    gate = result.document["gate"]
    assert gate["verdict"] == "pass"
    assert gate["max_ratio"] == 1.05
    assert [(row["subject"], row["over"]) for row in gate["rows"]] == [
        ("ort-cpu:base", "ort-cpu:base@baseline"), ("ort-cpu:one", "ort-cpu:one@baseline"),
    ]  # fmt: skip
    slowed(monkeypatch, 1.1, of="ort-cpu:one")
    failed = call(capsys, "bench", export, "--against", built, *QUICK, "--json")
    assert failed.code == 6
    verdicts = [row["verdict"] for row in failed.document["gate"]["rows"]]
    assert verdicts == ["pass", "fail"]


def test_a_graph_that_the_baseline_export_lacks_is_not_passed_over(
    export, built, adapter, capsys, monkeypatch
) -> None:
    steady(monkeypatch)
    assert call(capsys, "add", export, "--adapter", f"two={adapter}", "--quiet").code == 0
    command_line = ("bench", export, "--against", built, *QUICK)
    result = call(capsys, *command_line)
    assert result.code == 0
    assert "gate: unverified" in result.out
    assert "ort-cpu:two: the baseline has no graph of that name" in result.out
    assert call(capsys, *command_line, "--strict").code == 6
    asked = call(capsys, *command_line, "--graph", "one", "--json")
    assert asked.document["gate"]["verdict"] == "pass"


def test_an_open_judgement_is_ambiguous_and_says_how_many_rounds(
    export, built, capsys, monkeypatch
) -> None:
    steady(monkeypatch)
    slowed(monkeypatch, 1.0495, of="ort-cpu:one")
    command_line = ("bench", export, "--against", built, *QUICK)
    result = call(capsys, *command_line)
    assert result.code == 0
    assert "gate: ambiguous" in result.out
    assert "rounds would settle it" in result.out
    assert call(capsys, *command_line, "--strict").code == 6


def test_it_measures_on_while_the_judgement_is_open_and_stops_when_it_is_not(
    export, capsys, monkeypatch
) -> None:
    steady(monkeypatch)
    limits = ("--max-ratio", 1.05, "--rounds", 5, "--max-rounds", 40, "--length", 8)
    quiet = ("--no-startup", "--quiet", "--json")
    decided = call(capsys, "bench", export, *limits, *quiet).document
    assert decided["cells"][0]["rounds"] == 5
    slowed(monkeypatch, 1.0499, of="ort-cpu:one")
    open_still = call(capsys, "bench", export, *limits, *quiet).document
    assert open_still["cells"][0]["rounds"] == 40


def test_a_file_keeps_ratios_and_judges_the_next_run(export, tmp_path, capsys, monkeypatch) -> None:
    steady(monkeypatch)
    file = tmp_path / "latency.json"
    settings = ("bench", export, *QUICK, "--baseline", file)
    missing = call(capsys, *settings)
    assert missing.code == 3
    assert "--update-baseline" in missing.message
    written = call(capsys, *settings, "--update-baseline")
    assert written.code == 0
    assert str(file) in written.out
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["cell"], row["subject"], row["over"]) == (
        "prefill 1×8", "ort-cpu:one", "ort-cpu:base",
    )  # fmt: skip
    assert call(capsys, *settings).code == 0
    slowed(monkeypatch, 1.1, of="ort-cpu:one")
    failed = call(capsys, *settings, "--json")
    assert failed.code == 6
    (judged,) = failed.document["gate"]["rows"]
    assert judged["ratio"] == pytest.approx(1.1 * 1.0, abs=0.02)


def test_a_baseline_is_measured_on_until_it_is_worth_keeping(
    export, tmp_path, capsys, monkeypatch
) -> None:
    """Its error comes to each later comparison, where no round takes it away."""
    original = run_module.Interleaved

    class Noisy(original):
        @property
        def times_ms(self):
            noise = np.random.default_rng(0)
            return {
                key: 2.0 * np.exp(0.03 * noise.standard_normal(len(each)))
                for key, each in super().times_ms.items()
            }

    monkeypatch.setattr(run_module, "Interleaved", Noisy)
    file = tmp_path / "new" / "latency.json"
    keeping = ("bench", export, "--rounds", 6, "--length", 8, "--no-startup", "--quiet",
               "--baseline", file, "--update-baseline", "--json")  # fmt: skip
    result = call(capsys, *keeping)
    assert result.code == 0, result.err
    (row,) = json.loads(file.read_text())["rows"]
    assert result.document["cells"][0]["rounds"] > 48
    assert row["interval"][1] - row["interval"][0] < 0.025
    assert result.document["gate"] is None
    short = call(capsys, *keeping, "--max-rounds", 12)
    assert short.document["cells"][0]["rounds"] == 12


def test_no_further_runs_begin_after_so_many_seconds(export, capsys, monkeypatch) -> None:
    steady(monkeypatch)
    slowed(monkeypatch, 1.0499, of="ort-cpu:one")
    found = call(capsys, "bench", export, "--max-ratio", 1.05, "--length", 8, "--rounds", 100_000,
                 "--max-rounds", 200_000, "--max-seconds", 0.5, "--no-startup", "--quiet",
                 "--json").document  # fmt: skip
    assert 5 <= found["cells"][0]["rounds"] < 100_000


def test_a_size_that_is_said_twice_is_measured_once(export, capsys) -> None:
    found = call(capsys, "bench", export, *QUICK[:4], "--no-startup", "--quiet", "--json",
                 "--batch", "2,2", "--length", "8, 8", "--past", "4,4",
                 "--runner", "ort-cpu", "--runner", "ort-cpu").document  # fmt: skip
    assert [cell["past"] for cell in found["cells"]] == [0, 4]
    assert list(found["subjects"]) == ["ort-cpu:base", "ort-cpu:one"]


def test_another_class_of_machine_or_an_unknown_cell_is_not_compared(
    export, tmp_path, capsys, monkeypatch
) -> None:
    steady(monkeypatch)
    file = tmp_path / "latency.json"
    settings = ("bench", export, *QUICK, "--baseline", file)
    call(capsys, *settings, "--update-baseline")
    longer = ("bench", export, *QUICK, "--length", 12, "--baseline", file)
    other_cell = call(capsys, *longer)
    assert other_cell.code == 0
    assert "the baseline has no such figure" in other_cell.out
    table = json.loads(file.read_text())
    table["machine"]["cpu"] = "Another 9000"
    file.write_text(json.dumps(table))
    other = call(capsys, *settings)
    assert other.code == 0
    assert "gate: unverified" in other.out
    assert "not comparable, another class of machine: cpu 'Another 9000' there" in other.out
    assert call(capsys, *settings, "--strict").code == 6


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"rows": 3}'])
def test_a_damaged_baseline_is_named(export, tmp_path, capsys, damage) -> None:
    file = tmp_path / "latency.json"
    file.write_bytes(damage)
    result = call(capsys, "bench", export, *QUICK, "--baseline", file)
    assert result.code == 3
    assert "latency.json" in result.message


def test_swappable_and_batched_graphs_are_timed_with_their_adapters(
    base, adapter, tmp_path, capsys
) -> None:
    for mode, names in (("swappable", ["base", "swappable", "one"]),
                        ("batched", ["base", "batched"])):  # fmt: skip
        folder = tmp_path / mode
        build(base, {"one": adapter}, folder, task="text-generation", mode=mode)
        result = call(capsys, "bench", folder, *QUICK, "--batch", 3, "--past", 4, "--json")
        assert result.code == 0, result.err
        subjects = result.document["subjects"]
        assert [each["graph"] for each in subjects.values()] == names
        assert subjects[f"ort-cpu:{names[-1]}"]["mode"] == mode
        assert len(result.document["cells"]) == 2


def test_torch_runs_the_same_cells(export, base, capsys) -> None:
    result = call(capsys, "bench", export, *QUICK, "--past", 16, "--runner", "ort-cpu",
                  "--runner", "torch", "--base", base, "--json")  # fmt: skip
    assert result.code == 0, result.err
    keys = ["ort-cpu:base", "ort-cpu:one", "torch:base", "torch:one"]
    for cell in result.document["cells"]:
        assert list(cell["times"]) == keys
        compared = {(row["subject"], row["over"]) for row in cell["ratios"]}
        assert ("torch:one", "ort-cpu:one") in compared
        assert ("torch:one", "torch:base") in compared


def test_a_report_elsewhere_leaves_the_export_as_it_is(export, tmp_path, capsys) -> None:
    before = sorted(str(path) for path in export.rglob("*"))
    manifest = (export / "lora_export.json").read_bytes()
    file = tmp_path / "figures.json"
    result = call(capsys, "bench", export, *QUICK, "--report", file)
    assert result.code == 0
    assert BenchReport.model_validate_json(file.read_bytes())
    assert sorted(str(path) for path in export.rglob("*")) == before
    assert (export / "lora_export.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--runner", "ort-cuda"), 7, "no provider 'cuda'"),
        (("--runner", "nope"), 2, "Runners: ort-cpu"),
        (("--runner", "torch"), 2, "--base BASE"),
        (("--graph", "two"), 2, "It has: base, one"),
        (("--length", "9999"), 2, "positions"),
        (("--length", "x"), 2, "not a number"),
        (("--length", ""), 2, "--length is empty"),
        (("--batch", " "), 2, "--batch is empty"),
        (("--batch", "1,,2"), 2, "has '', which is not a number"),
        (("--threads", "-1"), 2, "--threads cannot be -1"),
        (("--max-seconds", "0"), 2, "--max-seconds cannot be 0"),
        (("--max-seconds", "nan"), 2, "--max-seconds cannot be nan"),
        (("--report", "."), 2, "is a folder"),
        (("--report", "/proc/figures.json"), 2, "cannot be written"),
        (("--baseline", "/dev/null/x.json", "--update-baseline"), 2, "cannot be written"),
        (("--baseline", ".", "--update-baseline"), 2, "is a folder"),
        (("--graph", "base", "--baseline", "x.json", "--update-baseline"), 2, "nothing to keep"),
        (("--batch", "0"), 2, "cannot be 0"),
        (("--rounds", "1"), 2, "--rounds cannot be 1"),
        (("--max-ratio", "-1"), 2, "--max-ratio cannot be -1"),
        (("--update-baseline",), 2, "--baseline FILE"),
        (("--graph", "base", "--max-ratio", "1.1"), 2, "--against"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    built, capsys, arguments, code, words
) -> None:
    result = call(capsys, "bench", built, *arguments, "--quiet")
    assert result.code == code
    assert words in result.message
    assert not (built / "reports" / "bench.json").exists()


def test_a_batch_that_does_not_fit_into_memory_is_said(built, tmp_path, capsys) -> None:
    result = call(capsys, "bench", built, "--batch", 10**13, "--length", 8, "--no-startup",
                  "--quiet", "--report", tmp_path / "bench.json")  # fmt: skip
    assert result.code == 4
    assert "do not fit into memory" in result.message


def test_a_damaged_graph_and_no_export_are_input_errors(export, tmp_path, capsys) -> None:
    assert call(capsys, "bench", tmp_path / "nothing").code == 3
    (export / "one.onnx").write_bytes(b"damaged")
    result = call(capsys, "bench", export, *QUICK)
    assert result.code == 3
    assert "one.onnx" in result.message


def test_it_runs_without_torch(built, tmp_path) -> None:
    result = command("bench", built, *QUICK, "--report", tmp_path / "bench.json",
                     without=("torch", "transformers", "peft"))  # fmt: skip
    assert result.code == 0, result.err
    assert "prefill 1×8, 6 rounds" in result.out
