"""``add``, ``remove`` and ``generate`` with a batched export, on the command line."""

from __future__ import annotations

from lora_export.core.manifest import read_manifest
from tests.cli.running import HEAVY, call, command
from tests.helpers.builds import build
from tests.helpers.models import save_tiny_tokenizer


def test_the_command_line_adds_without_torch_and_gates_on_request(base, adapters, tmp_path, capsys):
    export_dir = tmp_path / "out"
    built = call(
        capsys, "merge-and-build", "--base", base, "--adapter", f"mnli={adapters['mnli']}",
        "--mode", "batched", "--no-verify", "--out", export_dir,
    )  # fmt: skip
    assert built.code == 0, built.err
    assert "batched.onnx row 1" in built.out
    added = command("add", export_dir, "--adapter", f"sst2={adapters['sst2']}", without=HEAVY)
    assert added.code == 0, added.err
    assert "batched.onnx row 2" in added.out
    shown = call(capsys, "inspect", export_dir)
    assert shown.code == 0, shown.err
    removed = command("remove", export_dir, "mnli", without=HEAVY)
    assert removed.code == 0, removed.err
    assert set(read_manifest(export_dir).adapters) == {"sst2"}
    gone = call(capsys, "remove", export_dir, "mnli")
    assert gone.code == 3


def test_text_is_generated_with_a_row(tiny, tmp_path, capsys):
    base = tiny.base("gpt2", "text-generation")
    adapter = tiny.adapter(base, task="text-generation", seed=53, strength=1.0)
    texts = {}
    for mode in ("merged", "batched"):
        export_dir = build(base, {"a": adapter}, tmp_path / mode, mode=mode).output
        if not (export_dir / "hf" / "tokenizer.json").exists():
            save_tiny_tokenizer(export_dir / "hf")
        found = call(capsys, "generate", export_dir, "--adapter", "a", "--prompt", "the cat",
                     "--max-new-tokens", 8, "--json")  # fmt: skip
        assert found.code == 0, found.err
        texts[mode] = found.document
    assert texts["merged"] == texts["batched"]
