"""``merge`` that is refused, killed or out of disk: one message, and nothing is left."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.running import REPOSITORY, call, command, snapshot, stagings
from tests.helpers.handmade import save_adapter, shapes_of_lora

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


CASES_OF_ARGUMENTS = (
    "no adapter", "two adapters", "size", "dtype", "integer", "labels", "unmerge", "no base",
    "drop",
)  # fmt: skip


def bad_arguments(base: Path, adapter: Path, out: Path) -> dict[str, tuple[list[Any], int, str]]:
    plain = ["--base", base, "--out", out]
    return {
        "no adapter": (plain, 2, "no adapter"),
        "two adapters": ([*plain, "--adapter", adapter, "--adapter", f"b={adapter}"], 2, "combine"),
        "size": ([*plain, "--adapter", adapter, "--max-shard-size", "much"], 2, "not a size"),
        "dtype": ([*plain, "--adapter", adapter, "--dtype", "float5"], 4, "float5"),
        "integer": ([*plain, "--adapter", adapter, "--dtype", "int8"], 4, "int8"),
        "labels": ([*plain, "--adapter", adapter, "--labels", "a,b"], 2, "no head"),
        "unmerge": ([*plain, "--adapter", adapter, "--unmerge", base], 2, "--unmerge"),
        "no base": (["--base", base / "no", "--out", out, "--adapter", adapter], 3, "not a dir"),
        "drop": ([*plain, "--adapter", adapter, "--drop", "no.*"], 2, "matches no tensor"),
    }


@pytest.mark.parametrize("case", CASES_OF_ARGUMENTS)
def test_bad_arguments(case, parts, capsys) -> None:
    base, adapter, out = parts
    arguments, code, word = bad_arguments(base, adapter, out)[case]
    result = call(capsys, "merge", *arguments)
    assert result.code == code, result.err
    assert word in result.message
    assert not out.exists()


def test_what_is_at_the_output_stays(parts, capsys) -> None:
    base, adapter, out = parts
    out.mkdir(parents=True)
    (out / "mine").write_text("kept")
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out)
    assert result.code == 3
    assert snapshot(out) == {"mine": b"kept"}
    (out / "mine").unlink()
    assert call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out).code == 0


@pytest.mark.parametrize(
    ("modules", "word"),
    [({"bert.encoder.layer.7.attention.self.query": (8, 8)}, "match nothing"),
     ({"bert.encoder.layer.0.attention.self.query": (8, 6)}, "do not fit")],
)  # fmt: skip
def test_an_adapter_that_does_not_fit(parts, capsys, modules, word) -> None:
    base, _, out = parts
    adapter = save_adapter(base.parent / "other", shapes_of_lora(modules))
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out)
    assert result.code == 3
    assert word in result.message
    assert not out.exists()


def test_truncated_base_leaves_nothing(parts, capsys) -> None:
    base, adapter, out = parts
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out)
    assert result.code == 3
    assert not out.parent.exists()


def test_nan_in_the_adapter_leaves_nothing(parts, capsys) -> None:
    base, adapter, out = parts
    path = adapter / "adapter_model.safetensors"
    values = load_file(path)
    next(iter(values.values()))[0, 0] = np.nan
    save_file(values, path)
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out)
    assert result.code == 3
    assert "NaN" in result.message
    assert not out.parent.exists()


def test_what_float16_cannot_hold_is_refused(parts, capsys) -> None:
    base, adapter, out = parts
    path = base / "model.safetensors"
    values = load_file(path)
    values["embeddings.word_embeddings.weight"][3, 3] = 1e6
    save_file(values, path)
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out, "--dtype",
                  "float16")  # fmt: skip
    assert result.code == 3
    assert "word_embeddings" in result.message
    assert not out.parent.exists()


def limit_files(size_bytes: int) -> Callable[[], None]:
    def apply() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    return apply


@pytest.mark.parametrize("size_bytes", [0, 100, 1500])
def test_full_disk_leaves_nothing(parts, size_bytes) -> None:
    base, adapter, out = parts
    result = command("merge", "--base", base, "--adapter", adapter, "--out", out,
                     before=limit_files(size_bytes))  # fmt: skip
    assert result.code == 3, result.err
    assert "cannot write" in result.message
    assert not out.parent.exists()


SLOW = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
real = os.fsync
def slow(descriptor):
    print("writing", flush=True)
    time.sleep(3)
    real(descriptor)
os.fsync = slow
from lora_export.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_nothing_and_the_rerun_succeeds(parts, number, code) -> None:
    base, adapter, out = parts
    arguments = ["merge", "--base", str(base), "--adapter", str(adapter), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert not out.exists()
    if number != signal.SIGKILL:
        assert not out.parent.exists() or not stagings(out.parent)
    assert command(*arguments).code == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
