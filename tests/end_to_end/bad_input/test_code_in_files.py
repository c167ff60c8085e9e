"""Pickles and Python files beside a checkpoint: no code of theirs is run."""

from __future__ import annotations

import pickle
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import call
from tests.end_to_end.bad_input.spoiling import (
    ADAPTER_FILE,
    TASK,
    Inputs,
    assert_refused,
    build,
    edit_json,
)

if TYPE_CHECKING:
    from pathlib import Path


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.witness)],)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("whose", ["base", "adapter"])
def test_pickle_that_runs_code_is_refused_and_not_run(inputs, tmp_path, capsys, whose, form):
    import torch

    witness = tmp_path / "ran"
    folder, old, new = {
        "base": (inputs.base, "model.safetensors", "pytorch_model.bin"),
        "adapter": (inputs.adapter, ADAPTER_FILE, "adapter_model.bin"),
    }[whose]
    (folder / old).unlink()
    content = {"bert.x": torch.zeros(2), "payload": Bomb(witness)}
    if form == "bare pickle":
        (folder / new).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / new, _use_new_zipfile_serialization=form == "zip")
    assert_refused(build(capsys, inputs), inputs, 3, new)
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" + b"\0" * 100])
def test_damaged_bin_file(inputs: Inputs, capsys, content: bytes) -> None:
    (inputs.base / "model.safetensors").unlink()
    (inputs.base / "pytorch_model.bin").write_bytes(content)
    assert_refused(build(capsys, inputs), inputs, 3, "pytorch_model.bin")


def test_remote_code_is_not_run(inputs: Inputs, tmp_path: Path, capsys) -> None:
    """Neither by the export nor by the reference of the verification."""
    witness = tmp_path / "ran"
    (inputs.base / "modeling_x.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    edit_json(
        inputs.base / "config.json",
        auto_map={
            "AutoConfig": "modeling_x.XConfig",
            "AutoModelForSequenceClassification": "modeling_x.X",
        },
    )
    result = call(capsys, "merge-and-build", "--base", inputs.base, "--task", TASK,
                  "--adapter", f"mine={inputs.adapter}", "--no-latency",
                  "--out", inputs.out)  # fmt: skip
    assert result.code == 0, result.err
    assert not witness.exists()
