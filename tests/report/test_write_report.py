"""The command and the files: hashed, atomic, refreshed; annotations and markdown that stay text."""

from __future__ import annotations

import json
import re

import pytest

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import sha256_of_file
from lora_export.core.manifest import read_manifest, write_manifest
from lora_export.report.facts import read_facts
from lora_export.report.github import annotate
from lora_export.report.markdown import markdown
from lora_export.report.markup import Markup, join, tag
from lora_export.report.report_files import REPORT_HTML, REPORT_MARKDOWN
from lora_export.report.write_report import write_report
from tests.cli.exports import assert_intact
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.showcase import HOSTILE, save_showcase


@pytest.fixture
def export(tmp_path):
    return save_showcase(tmp_path / "out")


def rewrite(export, name, change):
    """Change a report as a stranger might: the manifest knows the new hash."""
    path = export / f"reports/{name}.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    manifest = read_manifest(export)
    files = {**manifest.files, f"reports/{name}.json": sha256_of_file(path)}
    write_manifest(export, manifest.model_copy(update={"files": files}))


def test_the_command_writes_both_files_and_says_where(capsys, export):
    done = call(capsys, "report", export, "--json", "--quiet")
    assert done.code == 0
    assert done.document == {
        "html": str(export / REPORT_HTML), "markdown": str(export / REPORT_MARKDOWN),
    }  # fmt: skip
    files = read_manifest(export).files
    assert files[REPORT_HTML] == sha256_of_file(export / REPORT_HTML)
    assert files[REPORT_MARKDOWN] == sha256_of_file(export / REPORT_MARKDOWN)


def test_annotations_name_everything_that_is_no_pass(capsys, export, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    done = call(capsys, "report", export, "--github", "--quiet")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.partition("::")[2].partition(" ")[0] for line in lines].count("error") == 4
    assert all(re.fullmatch(r"::(error|warning) title=[^:]*::.*", line) for line in lines)
    assert not any("Parity of support-intents" in line for line in lines)
    assert summary.read_text() == "before\n" + (export / REPORT_MARKDOWN).read_text()


def test_a_name_cannot_begin_a_command_of_its_own(export):
    bad = "x\n::error title=a,b::c%0A\r::stop"
    rewrite(export, "latency", lambda t: t["graphs"].update({bad: {**t["graphs"]["billing_intents"],
                                                                   "reason": bad}}))  # fmt: skip
    (line,) = [each for each in annotate(read_facts(export)) if "stop" in each]
    assert "\n" not in line
    assert "\r" not in line
    title, _, message = line.removeprefix("::warning title=").partition("::")
    assert ":" not in title
    assert "," not in title
    assert "c%250A" in message


def test_markdown_is_a_table_with_no_markup_from_outside(export):
    text = markdown(read_facts(export))
    assert HOSTILE not in text
    assert "&#60;script" in text
    rows = [line for line in text.splitlines() if line.startswith("| support-intents")]
    assert "✅ pass" in rows[0]
    assert "3.40e-07" in rows[0]
    assert "int4, blocks of 32" in rows[1]
    assert "0.9150" in rows[2]
    for line in text.splitlines():
        assert "://" not in line
        if line.startswith("|"):
            assert len(line.split(" | ")) in {5, 6, 7, 8, 9, 4}


def test_a_report_that_is_not_the_manifests_is_left_out_and_named(export):
    (export / "reports/latency.json").write_text('{"graphs": {"x": {}}}')
    write_report(export)
    text = (export / REPORT_HTML).read_text()
    assert "reports/latency.json does not match the manifest" in text
    assert "1.160" not in text


def test_figures_of_graphs_that_have_changed_are_left_out_and_named(export):
    """A timing of files that the export does not hold any more says nothing of it."""

    def timed(table, sha):
        table["subjects"]["ort-cpu:base"]["files"] = {"base.onnx": sha}
        table["subjects"]["ort-cpu:base@baseline"] = {
            **table["subjects"]["ort-cpu:base"], "baseline": True, "files": {"base.onnx": "0" * 64},
        }  # fmt: skip

    rewrite(export, "bench", lambda t: timed(t, sha256_of_file(export / "base.onnx")))
    write_report(export)
    assert "Benchmark" in (export / REPORT_MARKDOWN).read_text()
    rewrite(export, "bench", lambda t: timed(t, "1" * 64))
    write_report(export)
    text = (export / REPORT_HTML).read_text()
    assert "reports/bench.json is of graphs that have changed since, and was left out." in text
    assert "Times of forward" not in text
    assert "Benchmark" not in (export / REPORT_MARKDOWN).read_text()


def test_a_verdict_on_another_adapter_of_that_name_is_not_shown(export):
    manifest = read_manifest(export)
    graphs = dict(manifest.graphs)
    graphs["support-intents"] = graphs["support-intents"].model_copy(
        update={"verification": "unverified"}
    )
    write_manifest(export, manifest.model_copy(update={"graphs": graphs}))
    write_report(export)
    text = (export / REPORT_MARKDOWN).read_text()
    row = next(line for line in text.splitlines() if line.startswith("| support-intents"))
    assert "unverified" in row
    assert "**Parity of support-intents**: changed since it was verified" in text
    assert "3.40e-07" not in row
    assert "3.40e-07" not in (export / REPORT_HTML).read_text()
    (line,) = [each for each in annotate(read_facts(export)) if "support-intents" in each][:1]
    assert line.startswith("::warning title=Parity of support-intents::changed since")


def test_an_example_without_a_label_has_a_dash(export):
    def scored(table):
        for each in table["graphs"]["billing_intents"]["dataset"]["differing"]:
            each.update(label=None, graph=None)

    rewrite(export, "parity", scored)
    write_report(export)
    assert ">None<" not in (export / REPORT_HTML).read_text()


def test_a_summary_that_cannot_be_written_is_said(capsys, export, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    done = call(capsys, "report", export, "--github", "--quiet")
    assert done.code == 3
    assert str(tmp_path) in done.message


def test_a_graph_of_nan_has_a_page(export):
    def broken(table):
        row = table["graphs"]["billing_intents"]
        row["metrics"]["relative_l2"] = None
        row["dataset"].update(graph=None, difference=None, difference_interval=None, mcnemar=None)

    rewrite(export, "parity", broken)
    write_report(export)
    text = (export / REPORT_MARKDOWN).read_text()
    assert "| billing&#95;intents | ⚠️ ambiguous | – | 0.420 |" in text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("parity", lambda t: t.update(graphs=[])),
        ("parity", lambda t: t["graphs"].update(base={"metrics": 3})),
        ("latency", lambda t: t["graphs"]["billing_intents"].update(ratio="x")),
        ("fidelity", lambda t: t["graphs"].update({"x": {}})),
        ("bench", lambda t: t.update(cells=[{}])),
        ("bench", lambda t: t["cells"][0]["times"]["ort-cpu:base"].update(samples_ms=[])),
    ],
)
def test_a_damaged_report_is_an_error_with_the_next_step(capsys, export, name, change):
    rewrite(export, name, change)
    before = read_manifest(export)
    done = call(capsys, "report", export, "--quiet")
    assert done.code == 3
    assert "damaged" in done.message
    assert "lora-export verify" in done.message
    assert read_manifest(export) == before


def test_what_is_no_export_is_refused(capsys, tmp_path):
    assert call(capsys, "report", tmp_path).code == 3
    assert call(capsys, "report", tmp_path, "--github", "--json").code == 2
    with pytest.raises(ExportDirectoryError):
        write_report(tmp_path)


def test_an_addition_and_a_removal_keep_it_true(capsys, tiny, tmp_path):
    base = tiny.base("bert")
    one = tiny.adapter(base)
    build(base, {"one": one}, tmp_path / "out")
    page = tmp_path / "out" / REPORT_HTML
    assert not page.parent.exists()  # nothing was measured, so that there is nothing to show
    assert call(capsys, "report", tmp_path / "out", "--quiet").code == 0
    assert "one.safetensors" in page.read_text()
    assert call(capsys, "add", tmp_path / "out", "--adapter", f"two={one}", "--quiet").code == 0
    assert "two.safetensors" in page.read_text()
    assert_intact(tmp_path / "out")
    assert call(capsys, "remove", tmp_path / "out", "one", "--quiet").code == 0
    assert "one.safetensors" not in page.read_text()
    assert_intact(tmp_path / "out")


def test_text_is_escaped_where_it_enters():
    inner = tag("b", 'a<&"')
    assert inner == '<b>a&lt;&amp;"</b>'
    assert tag("p", inner, "<i>", None, id='"><x>') == (
        '<p id="&quot;&gt;&lt;x&gt;"><b>a&lt;&amp;"</b>&lt;i&gt;</p>'
    )
    assert join(["\x1b[0m", Markup("<br>")]) == r"\x1b[0m<br>"
    assert tag("p", "\u202eevil") == r"<p>\u202eevil</p>"
