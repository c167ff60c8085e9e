"""The pytest plugin in projects of its users: what passes, fails, is refused and is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_export.core.manifest import read_manifest
from tests.helpers.builds import build

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
MEASURING = """
    def test_latency(lora_export_bench):
        lora_export_bench({out!r}, lengths=(8,), rounds=5, max_rounds=5, max_ratio={limit})
"""


@pytest.fixture(scope="module")
def export(tiny, tmp_path_factory):
    """A verified export with golden outputs; not to be changed."""
    base = tiny.base("bert")
    folder = tmp_path_factory.mktemp("plugin") / "out"
    build(base, {"one": tiny.adapter(base)}, folder, verify={"enabled": True})
    return folder


@pytest.fixture
def project(pytester, monkeypatch):
    """A project whose pytest has the plugin, whether or not it is installed.

    Run in this process where it does not matter: libraries are loaded once, before pytester takes
    its picture of what is loaded.
    """
    import onnxruntime  # noqa: F401

    import lora_export.commands.add  # noqa: F401

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini("[pytest]\naddopts = -p lora_export.pytest_plugin -p no:cacheprovider\n")
    return pytester


def test_latency_of_this_export(lora_export_bench, export):
    """The plugin in use: an adapter's graph is the base's with other weights, so as fast."""
    found = lora_export_bench(export, lengths=(64,), max_ratio=2.0, rounds=30, max_rounds=240)
    assert found.report.gate.verdict in {"pass", "ambiguous"}
    assert not (export / "reports" / "bench.json").exists()


def test_parity_of_this_export(lora_export_parity, export):
    outcome = lora_export_parity(export)
    assert {row.verdict for row in outcome.reports.parity.graphs.values()} == {"pass"}


def test_a_user_measures_and_verifies(project, export) -> None:
    project.makepyfile(
        f"""
        def test_latency(lora_export_bench):
            found = lora_export_bench({str(export)!r}, lengths=(8,), rounds=5, max_ratio=1000)
            assert found.report.cells[0].rounds == 5

        def test_parity(lora_export_parity):
            lora_export_parity({str(export)!r})
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([
        "*= lora-export =*",
        "*test_latency: ort-cpu:one, forward 1×8: * times ort-cpu:base, pass: *",
        "*test_parity: parity of one: pass: *",
    ])  # fmt: skip


def test_a_regression_and_a_wrong_graph_fail_without_a_traceback(project, export) -> None:
    project.makepyfile(
        f"""
        import lora_export.latency.grid as run

        def test_latency(lora_export_bench):
            lora_export_bench({str(export)!r}, lengths=(8,), rounds=20, max_ratio=0.01)

        def test_parity(lora_export_parity, monkeypatch):
            from lora_export.commands import verify as command
            real = command.verify

            def wrong(output, **given):
                outcome = real(output, **given)
                rows = outcome.reports.parity.graphs
                wrong = {{"verdict": "fail", "reason": "off"}}
                rows["one"] = rows["one"].model_copy(update=wrong)
                return outcome

            monkeypatch.setattr(command, "verify", wrong)
            lora_export_parity({str(export)!r})
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*lies above the limit 0.01*", "*parity of one: fail: off*"])
    assert "Traceback" not in result.stdout.str()


def test_an_adapter_that_quantization_lost_fails_the_parity(project, export) -> None:
    project.makepyfile(
        f"""
        from dataclasses import replace

        def test_parity(lora_export_parity, monkeypatch):
            from lora_export.commands import verify as command
            from lora_export.core.reports.quantization_report import (
                QuantizationReport, QuantizationRow,
            )
            real = command.verify

            def lost(output, **given):
                outcome = real(output, **given)
                rows = {{
                    "base": QuantizationRow(verdict="ungated"),
                    "one": QuantizationRow(verdict="fail", reason="does not survive"),
                }}
                report = QuantizationReport(graphs=rows)
                return replace(outcome, reports=replace(outcome.reports, quantization=report))

            monkeypatch.setattr(command, "verify", lost)
            lora_export_parity({str(export)!r})
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*quantization of one: fail: does not survive*"])
    assert "quantization of base" not in result.stdout.str()


def test_the_baseline_lies_in_the_repository(project, export) -> None:
    project.makepyfile(
        f"""
        import pytest

        @pytest.mark.lora_export(lengths=(8,), rounds=5, max_rounds=5, max_ratio=1000)
        def test_latency(lora_export_bench):
            lora_export_bench({str(export)!r}, baseline="figures/latency.json")
        """
    )
    missing = project.runpytest_inprocess()
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines([
        "*there is no baseline at *figures/latency.json*",
        "Write it first: pytest --lora-export-update-baseline",
    ])  # fmt: skip
    assert "Traceback" not in missing.stdout.str()
    assert "judge.py" not in missing.stdout.str()
    assert "another exception occurred" not in missing.stdout.str()
    project.runpytest_inprocess("--lora-export-update-baseline").assert_outcomes(passed=1)
    file = project.path / "figures" / "latency.json"
    table = json.loads(file.read_text())
    assert [row["subject"] for row in table["rows"]] == ["ort-cpu:one"]
    result = project.runpytest_inprocess("--lora-export-strict")
    result.assert_outcomes(passed=1)
    table["machine"]["cpu"] = "Another 9000"
    file.write_text(json.dumps(table))
    result = project.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*unverified: not comparable, another class of machine*"])
    project.runpytest_inprocess("--lora-export-strict").assert_outcomes(failed=1)


def test_two_measurements_do_not_write_one_baseline(project, export) -> None:
    """The second would take the place of the first, whose figure would then be missing."""
    project.makepyfile(
        f"""
        import pytest

        @pytest.mark.lora_export(rounds=5, max_rounds=5, max_ratio=1000, baseline="latency.json")
        @pytest.mark.parametrize("length", [8, 12])
        def test_latency(lora_export_bench, length):
            lora_export_bench({str(export)!r}, lengths=(length,))
        """
    )
    result = project.runpytest_inprocess("--lora-export-update-baseline")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*latency.json was written for *test_latency*8* in this run*"])
    table = json.loads((project.path / "latency.json").read_text())
    assert [row["cell"] for row in table["rows"]] == ["forward 1×8"]


def test_a_base_beside_the_tests_is_found_from_any_folder(
    project, export, tiny, monkeypatch
) -> None:
    (project.path / "models").mkdir()
    (project.path / "models" / "bert").symlink_to(tiny.base("bert"))
    project.makepyfile(
        f"""
        def test_parity(lora_export_parity):
            outcome = lora_export_parity({str(export)!r}, base="models/bert")
            assert outcome.reports.parity.graphs["one"].against.startswith("PEFT")
        """
    )
    monkeypatch.chdir(project.path / "models")
    project.runpytest_inprocess(project.path, "--rootdir", project.path).assert_outcomes(passed=1)


def test_measuring_in_parallel_is_refused_and_says_what_to_do(project, export) -> None:
    project.makepyfile(MEASURING.format(out=str(export), limit=1000))
    refused = project.runpytest_subprocess("-n", "2")
    refused.assert_outcomes(errors=1)
    refused.stdout.fnmatch_lines(["*latency is not measured beside*-n 0*--dist loadgroup*"])
    project.runpytest_subprocess("-n", "0").assert_outcomes(passed=1)


def test_with_loadgroup_several_workers_may_measure(project, export) -> None:
    project.makepyfile(
        test_one=MEASURING.format(out=str(export), limit=1000),
        test_two=MEASURING.format(out=str(export), limit=1000),
        test_three="def test_other(): pass",
    )
    result = project.runpytest_subprocess("-n", "2", "--dist", "loadgroup", "-v")
    result.assert_outcomes(passed=3)
    assert any("times ort-cpu:base, pass" in line for line in result.outlines)


def test_with_loadgroup_the_other_workers_wait_while_one_measures(project, export) -> None:
    stamps = f"""
        import json, time
        from pathlib import Path

        def stamp(kind, begin):
            with Path({str(project.path)!r}, kind).open("a") as stream:
                stream.write(json.dumps([begin, time.monotonic()]) + "\\n")
    """
    project.makepyfile(
        stamps=stamps,
        test_one=f"""
            import time, pytest
            from stamps import stamp

            @pytest.fixture
            def measure(lora_export_bench):
                return lora_export_bench

            @pytest.mark.parametrize("at", range(3))
            def test_latency(measure, at):
                begin = time.monotonic()
                measure({str(export)!r}, lengths=(8,), rounds=30, max_rounds=30, max_ratio=1000)
                time.sleep(0.3)
                stamp("alone", begin)
        """,
        test_two="""
            import time, pytest
            from stamps import stamp

            @pytest.mark.parametrize("at", range(40))
            def test_other(at):
                begin = time.monotonic()
                time.sleep(0.05)
                stamp("beside", begin)
        """,
    )
    result = project.runpytest_subprocess("-n", "3", "--dist", "loadgroup")
    result.assert_outcomes(passed=43)
    spans = {
        name: [json.loads(line) for line in (project.path / name).read_text().splitlines()]
        for name in ("alone", "beside")
    }
    assert len(spans["alone"]) == 3
    for begin, end in spans["alone"]:
        assert not [each for each in spans["beside"] if each[0] < end and begin < each[1]]


def test_with_loadgroup_a_fixture_that_is_asked_for_on_the_way_is_refused(project, export) -> None:
    project.makepyfile(
        test_one=MEASURING.format(out=str(export), limit=1000),
        test_two=f"""
            def test_late(request):
                request.getfixturevalue("lora_export_bench")({str(export)!r})
        """,
    )
    result = project.runpytest_subprocess("-n", "2", "--dist", "loadgroup")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*the fixture has to be an argument of the test*"])


def test_pytest_starts_without_heavy_libraries_and_without_much_time() -> None:
    code = (
        "import sys, lora_export.pytest_plugin\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'torch', 'onnxruntime', 'onnx', 'numpy', 'transformers', 'pydantic', 'click'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_entry_point_is_declared_under_the_name_of_the_module() -> None:
    """So that naming it with -p as well is not registering it twice."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.partition("[project.entry-points.pytest11]")[2].partition("\n[")[0]
    assert '"lora_export.pytest_plugin" = "lora_export.pytest_plugin"' in section


def test_the_export_was_not_changed(export) -> None:
    assert "reports/bench.json" not in read_manifest(export).files
