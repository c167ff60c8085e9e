"""Commands run without what they have no use for: imports are most of a short command's time."""

from __future__ import annotations

from typing import Final

import pytest

from tests.cli.running import HEAVY, call, command

NO_LIBRARIES: Final = (
    *HEAVY, "onnx", "google.protobuf", "onnxruntime", "tokenizers", "safetensors", "sympy.core",
    "yaml", "rich", "httpx", "numpy.random", "subprocess",
)  # fmt: skip
NO_MODULES: Final = tuple(
    f"lora_export.{name}"
    for name in (
        "core.torch_private", "weights.gguf.gguf_base", "weights.quantized.formats",
        "weights.quantized_entries", "report.write_report", "verification.record",
        "core.reports.parity_report", "core.reports.quantization_report", "exports.packs",
        "exports.stacks", "exports.values", "commands.build_quantized", "graph.spec.placed_model",
    )
)  # fmt: skip

NO_STAGES: Final = tuple(
    f"lora_export.{name}"
    for name in (
        "bundle.device_bundle", "layouts.runtimes", "triton.repository", "verification.export",
        "graph.ort_form.ort_template", "graph.quantize.quantized_template", "exports.own_graph",
        "runtime.ort", "runtime.reference", "graph.foreign.open_graph",
    )
)  # fmt: skip
"""Modules that a build imports only if its recipe asks for their stage."""


def test_add_needs_no_graph_library_and_no_reports(tiny, tmp_path, capsys) -> None:
    base = tiny.base("bert", "text-classification")
    first, second = tiny.adapter(base), tiny.adapter(base, seed=5)
    out = tmp_path / "out"
    built = call(capsys, "export", "--base", base, "--adapter", f"a={first}", "--out", out)
    assert built.code == 0, built.err
    added = command("add", out, "--adapter", f"b={second}", without=(*NO_LIBRARIES, *NO_MODULES))
    assert added.code == 0, added.err


def test_export_from_a_template_needs_no_stage_that_is_not_asked_for(tiny, tmp_path) -> None:
    base = tiny.base("bert", "text-classification", num_hidden_layers=6)
    needed = {"onnx", "onnx_ir", "google.protobuf", "subprocess"}
    unused = {*NO_LIBRARIES, *NO_MODULES, *NO_STAGES} - needed
    done = command(
        "merge-and-build", "--no-verify", "--base", base, "--adapter", f"a={tiny.adapter(base)}",
        "--out", tmp_path / "out", without=sorted(unused),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "graph from a template" in done.err


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_merge_needs_no_graph_library_and_no_graphs(tiny, tmp_path, dtype) -> None:
    base = tiny.base("bert", "text-classification", dtype=dtype)
    merged = command(
        "merge", "--base", base, "--adapter", tiny.adapter(base), "--out", tmp_path / "out",
        without=(*NO_LIBRARIES, *NO_MODULES, "lora_export.graph.spec.template"),
    )  # fmt: skip
    assert merged.code == 0, merged.err
