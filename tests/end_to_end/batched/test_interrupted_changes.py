"""Changes of a batched export that were cut short: finished, or they never were."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.commands.add import add
from lora_export.commands.remove import remove
from lora_export.commands.verify import verify
from lora_export.core import changes
from lora_export.core import journal as waiting_files
from lora_export.core.errors import AdapterError
from lora_export.core.journal import WAITING
from lora_export.core.manifest import read_manifest
from lora_export.runtime import open_export
from tests.cli.exports import peft_model, run_torch
from tests.cli.running import call
from tests.end_to_end.batched.example import (
    CLOSE,
    TASK,
    by_onnxruntime,
    feeds_of,
)
from tests.helpers.builds import build, spec
from tests.helpers.models import save_tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def test_a_change_that_was_cut_short_is_finished_or_never_was(export_dir, tiny, base, monkeypatch):
    """Between the manifest and the graph's last move, the old export or the new one is served."""
    new = tiny.adapter(base, seed=66)
    before = by_onnxruntime(export_dir, feeds_of(2), [1, 2])
    monkeypatch.setattr(changes, "write_manifest", _killed)
    with pytest.raises(KeyboardInterrupt):
        add(export_dir, [spec("new", new)])
    with open_export(export_dir, check_hashes=True) as session:
        found = session.run(feeds_of(2), adapter_ids=[1, 2])["logits"]
        assert "new" not in session.adapters
    np.testing.assert_array_equal(found, before)
    monkeypatch.undo()
    monkeypatch.setattr(changes, "finish", _killed)
    with pytest.raises(KeyboardInterrupt):
        add(export_dir, [spec("new", new)])
    monkeypatch.undo()
    assert (export_dir / WAITING / "batched.onnx").is_file()
    with open_export(export_dir, check_hashes=True) as session:
        found = session.run(feeds_of(2), adapter_ids=["new", "sst2"])["logits"]
    assert not (export_dir / WAITING).exists()
    wanted = run_torch(peft_model(base, new, TASK, labels_count=3), feeds_of(2))
    np.testing.assert_allclose(found[0, :3], wanted[0], **CLOSE)
    assert verify(export_dir).reports.parity.graphs["batched"].verdict != "fail"


def test_a_reader_that_finishes_a_change_beside_its_writer_does_no_harm(export_dir, monkeypatch):
    """Between the look at the waiting graph and its move, another process moves it."""
    graph, waiting = export_dir / "batched.onnx", export_dir / WAITING / "batched.onnx"
    before = graph.read_bytes()
    waiting.parent.mkdir()
    graph.replace(waiting)
    hashed = waiting_files.sha256_of_file

    def then_moved(path: Path) -> str:
        found = hashed(path)
        if path == waiting:
            waiting.replace(graph)
        return found

    monkeypatch.setattr(waiting_files, "sha256_of_file", then_moved)
    read_manifest(export_dir)
    assert graph.read_bytes() == before
    assert not waiting.parent.exists()


def test_what_a_killed_change_left_is_removed_by_the_next(export_dir, tiny, base):
    stray = export_dir / "weights" / "batched-0123456789ab.safetensors"
    stray.write_bytes(b"of a change whose process was killed")
    add(export_dir, [spec("new", tiny.adapter(base, seed=66))])
    assert not stray.exists()
    remove(export_dir, "new")
    golden = export_dir / "golden" / "new.npz"
    for file in (stray, golden):
        file.write_bytes(b"of a removal whose process was killed")
    remove(export_dir, "new")
    assert not stray.exists()
    assert not golden.exists()
    with pytest.raises(AdapterError, match="has no adapter 'new'"):
        remove(export_dir, "new")
    assert verify(export_dir, base=base).exit_code() == 0


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_generate_finishes_a_change_that_was_cut_short(tiny, tmp_path, capsys):
    base = tiny.base("gpt2", "text-generation")
    one, two = (
        tiny.adapter(base, task="text-generation", seed=seed, strength=1.0) for seed in (53, 54)
    )
    export_dir = build(base, {"a": one}, tmp_path / "out", mode="batched").output
    if not (export_dir / "hf" / "tokenizer.json").exists():
        save_tiny_tokenizer(export_dir / "hf")

    def told() -> Any:
        found = call(capsys, "generate", export_dir, "--adapter", "a", "--prompt", "the cat",
                     "--max-new-tokens", 8, "--json")  # fmt: skip
        assert found.code == 0, found.err
        return found.document

    before, old = told(), (export_dir / "batched.onnx").read_bytes()
    add(export_dir, [spec("a", two)], replace=True)
    after = told()
    assert after != before
    (export_dir / WAITING).mkdir()
    (export_dir / "batched.onnx").replace(export_dir / WAITING / "batched.onnx")
    (export_dir / "batched.onnx").write_bytes(old)
    stated = json.dumps({"batched.onnx": hashlib.sha256(old).hexdigest()})
    (export_dir / WAITING / ".replaced.json").write_text(stated)
    assert told() == after
