"""Damaged and changed exports: found before a file is used, and torch is never imported."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_export.commands.remove import remove
from lora_export.core.errors import ExportDirectoryError
from lora_export.runtime import open_export
from tests.cli.running import HEAVY, python
from tests.runtime.session.example import FEEDS

if TYPE_CHECKING:
    from pathlib import Path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("file", "damage", "hashed"),
    [
        ("base.onnx", flip, False),
        ("weights/base.safetensors", cut, False),
        ("weights/base.safetensors", flip, True),
        ("a.onnx", flip, False),
        ("weights/a.safetensors", cut, False),
        ("weights/a.safetensors", flip, True),
        ("weights/a.safetensors", lambda path: path.unlink(), False),
        ("adapters/b.safetensors", flip, False),
        ("swappable.onnx", flip, False),
    ],
)
def test_damage_is_found_before_a_file_is_used(request, tmp_path, file, damage, hashed):
    of_merged = file in {"a.onnx", "weights/a.safetensors"}
    export = request.getfixturevalue("export" if of_merged else "swappable")
    export_dir = shutil.copytree(export, tmp_path / "out")
    damage(export_dir / file)

    def use() -> None:
        with open_export(export_dir, check_hashes=hashed) as session:
            for name in session.adapters:
                session.run(FEEDS, adapter=name)

    with pytest.raises(ExportDirectoryError, match=file.replace(".", r"\.")):
        use()


def test_an_export_that_changed_since_it_was_opened_says_so(swappable, batched, tmp_path):
    one, other = (
        shutil.copytree(each, tmp_path / each.parent.name) for each in (swappable, batched)
    )
    with open_export(one) as first, open_export(other) as second:
        kept = first.run(FEEDS, adapter="a")["logits"]
        for export_dir in (one, other):
            remove(export_dir, "a")
            remove(export_dir, "b")
        assert np.array_equal(first.run(FEEDS, adapter="a")["logits"], kept)  # it is loaded
        with pytest.raises(ExportDirectoryError, match="changed since it was opened") as caught:
            first.run(FEEDS, adapter="b")
        assert caught.value.hint == "Open the export again."
        with pytest.raises(ExportDirectoryError, match="changed since it was opened"):
            second.run(FEEDS, adapter_ids=["c", "c"])
    with open_export(other) as again:
        again.run(FEEDS, adapter_ids=["c", "c"])


def test_what_is_not_used_is_not_read(swappable, tmp_path):
    export_dir = shutil.copytree(swappable, tmp_path / "out")
    (export_dir / "adapters" / "a.safetensors").unlink()
    with open_export(export_dir, check_hashes=True) as session:
        found = session.run(FEEDS, adapter="b")["logits"]
        with pytest.raises(ExportDirectoryError, match=r"a\.safetensors"):
            session.run(FEEDS, adapter="a")
    with open_export(swappable) as session:
        assert np.array_equal(session.run(FEEDS, adapter="b")["logits"], found)


def test_torch_is_never_imported(export, adapters):
    code = """
import sys
import numpy as np
for name in {names!r}:
    sys.modules[name] = None
import lora_export
from lora_export import runtime
assert "onnxruntime" not in sys.modules and "numpy" in sys.modules
with runtime.open_export(sys.argv[1], adapters={{"new": sys.argv[2]}}) as session:
    ids = np.ones((1, 3), np.int64)
    feeds = {{each.name: ids for each in session.inputs}}
    for adapter in (None, "a", "new"):
        print(session.run(feeds, adapter=adapter)["logits"].shape)
"""
    result = python("-c", code.format(names=HEAVY), str(export), str(adapters["b"]))
    assert result.code == 0, result.err
    assert result.out.splitlines() == ["(1, 3)"] * 3
