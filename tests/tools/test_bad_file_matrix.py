"""The matrix of bad files: it notices what it has to, and a part of it is clean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.running import REPOSITORY
from tools.bad_file_matrix.cases import Case, cases_of
from tools.bad_file_matrix.commands import COMMANDS, Target, targets
from tools.bad_file_matrix.forked import Limits, Outcome, run_forked
from tools.bad_file_matrix.inputs import INPUTS, NEEDED
from tools.bad_file_matrix.judge import Seen, judge
from tools.bad_file_matrix.kinds import KINDS
from tools.bad_file_matrix.sandbox import make_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITS = Limits(0.5, 8 << 30)
LIGHT = ("inspect-fit", "convert-peft", "combine")
"""Commands without torch."""


FAILED_ONCE = (
    "layout|export_decoder|hf/one/chat_template.jinja|zeros",
    "triton-add|triton_swappable|export_swappable|outside",
    "triton-remove|triton_swappable|export_swappable|outside",
    "device-files|bundle_folder|golden|unreadable",
    "device-verify|bundle_folder|weights|unreadable",
    "bundle|export_swappable|weights/base.safetensors|unreadable",
    "api-inspect|base||unreadable",
    "api-inspect|export_merged||unreadable",
    "build|export_merged|lora_export.json|outside",
    "refit|export_engines|lora_export.json|outside",
    "refit|export_engines|engines/jetson-orin.trt10.3.0.timing|unreadable",
    "refit|export_engines|one.onnx|empty",
    "remove|export_swappable|reports|unreadable",
)
"""Cases in which a command once did what it may not."""


def matrix(tmp_path: Path, *words: str) -> dict[str, Any]:
    """Run the matrix in a process of its own, as `make nightly` does; return its JSON."""
    file = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.bad_file_matrix", *words, "--json", str(file)],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert file.is_file(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    assert not found["faults"], done.stdout
    return found


def test_a_part_of_the_matrix(tmp_path: Path) -> None:
    found = matrix(tmp_path, *LIGHT, "--count", "80", "--seed", "3")
    assert found["cases"] == 80
    assert found["codes"]["3"] > 20


@pytest.mark.slow
def test_more_of_the_matrix(tmp_path: Path) -> None:
    found = matrix(tmp_path, "--count", "200", "--seed", "4")
    assert found["cases"] == 200


@pytest.mark.slow
def test_cases_that_failed_once(tmp_path: Path) -> None:
    words = [word for case in FAILED_ONCE for word in ("--case", case)]
    found = matrix(tmp_path, *words)
    assert not found["faults"], found["faults"]
    assert found["cases"] == len(FAILED_ONCE)


def test_every_input_is_given_to_a_command() -> None:
    needed = {each for more in NEEDED.values() for each in more}
    assert {each.input for each in targets()} | needed == set(INPUTS)


def test_every_command_of_the_command_line_is_there() -> None:
    from lora_export.cli import COMMANDS as LINE

    begun = {each.words.split()[0] for each in COMMANDS.values()}
    assert set(LINE) - begun == {"doctor"}  # which reads no file


def test_a_new_file_is_covered_and_a_case_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "new.json").write_text("{}")
    cases = list(cases_of(tmp_path, Target("merge", "adapter")))
    assert {each.kind for each in cases if each.path == "new.json"} == set(KINDS)
    assert {"absent", "loop", "pipe"} <= {each.kind for each in cases if each.path == ""}
    assert all(Case.parse(str(each)) == each for each in cases)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_spoiled_is_whole_again(tmp_path: Path, kind: str) -> None:
    (tmp_path / "pristine" / "one").mkdir(parents=True)
    (tmp_path / "pristine" / "one" / "a.json").write_text('{"a": 1}')
    sandbox = make_sandbox(tmp_path / "pristine", tmp_path / "work")
    with sandbox.spoiled("one/a.json", kind):
        time.sleep(0.01)  # one kind grows meanwhile
        assert sandbox.changed() == ["one/a.json"]
    sandbox.restore()
    assert (sandbox.world / "one" / "a.json").read_text() == '{"a": 1}'
    assert sandbox.changed() == []
    assert (sandbox.outside / "copy" / "one" / "a.json").is_file()


def forked(tmp_path: Path, function: Callable[[], int], **settings: Any) -> Outcome:
    return run_forked(
        function, settings.pop("limits", LIMITS), tmp_path, environment={}, folder=tmp_path,
        **settings,
    )  # fmt: skip


def test_what_a_forked_process_does_is_seen(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def fails() -> int:
        raise KeyError("a")

    def hangs() -> int:
        return len((tmp_path / "pipe").read_bytes())

    def fills() -> int:
        data = bytearray(512 << 20)
        data[::4096] = b"x" * len(data[::4096])
        time.sleep(10)
        return len(data)

    def prints() -> int:
        sys.stdout.write("to stdout\n")
        return 3

    assert forked(tmp_path, fails).code == 1
    assert "KeyError" in forked(tmp_path, fails).err
    assert forked(tmp_path, hangs).ended == "sleep"
    assert "in hangs" in forked(tmp_path, hangs).stack
    assert forked(tmp_path, fills, limits=Limits(20, 256 << 20)).ended == "memory"
    assert forked(tmp_path, prints)[:3] == (3, "to stdout\n", "")


def test_rights_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    assert (
        forked(tmp_path, lambda: len((tmp_path / "closed").read_text()), obeys_modes=True).code == 1
    )


def faults(code: int, out: str = "", err: str = "", **settings: Any) -> list[str]:
    good = Seen(Outcome(0, "", "", 0.1, 0), {}, settings.pop("may_change", ()), ())
    is_hashed = settings.pop("is_hashed", False)
    outcome = Outcome(code, out, err, 0.1, 0, settings.pop("ended", None))
    left, changed = settings.pop("left", {}), settings.pop("changed", ())
    seen = Seen(outcome, left, changed, settings.pop("strayed", ()))
    return list(judge(seen, good, is_hashed=is_hashed, **settings))


def test_what_is_judged() -> None:
    message = "error: 'a' is a folder\n"
    assert faults(3, err=message) == []
    assert faults(0, "done") == []
    assert faults(1, err=message) == ["exit 1"]
    assert faults(-11) == ["is killed by signal 11"]
    assert faults(3, err=message * 2) == ["prints 2 messages"]
    assert faults(3) == ["prints 0 messages"]
    assert faults(3, err=message + "Traceback (most recent call last):") == ["prints a traceback"]
    assert faults(3, err=message, left={"a": (1,)}) == ["fails and leaves a"]
    assert faults(3, err=message, changed=("x/a",)) == ["fails and changes x/a"]
    assert faults(0, changed=("x/a",)) == ["changes x/a"]
    assert faults(0, changed=("x/a",), may_change=("x/b",)) == []
    assert faults(3, err=message, changed=("x/a",), is_moving=True) == []
    assert faults(0, is_hashed=True) == ["passes a file that is not what its hash says"]
    assert faults(0, strayed=("copy/a",)) == ["changes what a link leads to: copy/a"]
    assert faults(0, strayed=("copy/a",), is_named=True) == []
    assert faults(-9, ended="sleep") == ["hangs"]
    assert faults(0, "\x1b[31m") == ["prints control characters"]
