"""Killed or interrupted at any moment: what is on disk is old or new, and a rerun succeeds.

A process is stopped before its k-th change to the file system, for each k. Python announces every
one of them (audit events), so that nothing of the program has to be known. The stopped process is a
fork of one that has everything imported: hundreds of deaths take seconds.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.cli.exports import assert_intact, manifest_of
from tests.cli.running import REPOSITORY, python, snapshot, stagings
from tests.helpers.handmade import save_adapter, save_checkpoint
from tests.helpers.slow import nightly

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

TASK = "text-classification"
FEEDS = {
    "input_ids": np.arange(3, 21).reshape(2, 9),
    "attention_mask": np.ones((2, 9), np.int64),
    "token_type_ids": np.zeros((2, 9), np.int64),
}

DRIVER = """
import json, os, signal, shutil, sys
from pathlib import Path

plan = json.loads(sys.argv[1])
import lora_export.commands.build, lora_export.cli.merge_and_build
import lora_export.cli.add, lora_export.cli.merge
from lora_export.cli import run

EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "fcntl.flock",
          "shutil.rmtree"}
target, prepared, area = Path(plan["area"]) / "parent", plan["prepared"], plan["area"]

def fresh():
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    if prepared:
        shutil.copytree(prepared, target / "out")

def attempt(arguments, stop_at, how):
    # In a fork; returns the wait status, and how many events there were if it came through.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        count = 0
        def hook(event, args):
            nonlocal count
            if event not in EVENTS or not any(str(a).startswith(area) for a in args[:2]):
                if event != "fcntl.flock":
                    return
            if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            count += 1
            if count == stop_at:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                os.kill(os.getpid(), getattr(signal, how))
        sys.addaudithook(hook)
        try:
            code = run(arguments)
        except SystemExit as leaving:
            code = leaving.code
        os.write(writer, str(count).encode())
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    events = os.read(reader, 32)
    os.close(reader)
    return os.waitstatus_to_exitcode(status), int(events or 0)

fresh()
code, total = attempt(plan["arguments"], -1, "kill")
print(json.dumps({"clean": code, "total": total}), flush=True)
for stop_at in range(1, total + 1, plan["step"]):
    fresh()
    died, _ = attempt(plan["arguments"], stop_at, plan["how"])
    stopped = Path(area) / "stopped"
    shutil.rmtree(stopped, ignore_errors=True)
    shutil.copytree(target, stopped)
    again, _ = attempt(plan["again"], -1, "kill")
    print(json.dumps({"stop_at": stop_at, "died": died, "again": again}), flush=True)
    sys.stdin.readline()
"""


def run_driver(area: Path, prepared: Path | None, arguments, again, *, how: str, step: int):
    """Yield a row per stop, while the folders are as that stop left them."""
    plan = {
        "area": str(area), "prepared": prepared and str(prepared), "how": how, "step": step,
        "arguments": [str(a) for a in arguments], "again": [str(a) for a in again],
    }  # fmt: skip
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(plan)],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stdin is not None
    assert driver.stdout is not None
    try:
        head = json.loads(driver.stdout.readline())
        assert head["clean"] == 0
        assert head["total"] > 5
        for line in driver.stdout:
            yield json.loads(line)
            driver.stdin.write("\n")
            driver.stdin.flush()
        assert driver.wait(60) == 0
    finally:
        driver.kill()
        driver.wait()
        driver.stdin.close()
        driver.stdout.close()


@pytest.fixture
def parts(tiny: TinyModels, tmp_path: Path) -> dict[str, Path]:
    """A base, two adapters, and an export with the first of them; the graph is cached."""
    from lora_export.cli import run

    base = tiny.base("bert", TASK)
    first, second = tiny.adapter(base, r=4, seed=1), tiny.adapter(base, r=2, seed=3)
    out = tmp_path / "prepared"
    assert run(["export", "--quiet", "--base", str(base), "--task", TASK,
                f"--adapter=first={first}", "--out", str(out)]) == 0  # fmt: skip
    (tmp_path / "area").mkdir()
    return {"base": base, "first": first, "second": second, "export": out,
            "area": tmp_path / "area"}  # fmt: skip


def content(export: Path) -> dict[str, Any]:
    manifest = manifest_of(export)
    return {"files": manifest["files"], "adapters": set(manifest["adapters"])}


@pytest.mark.parametrize(("how", "code", "step"), [("kill", -9, 1), ("SIGINT", 130, 5)])
def test_build_stopped_anywhere_leaves_nothing_or_everything(parts, how, code, step) -> None:
    arguments = ["export", "--quiet", "--base", parts["base"], "--task", TASK,
                 "--adapter", f"first={parts['first']}", "--out",
                 parts["area"] / "parent" / "out"]  # fmt: skip
    expected = content(parts["export"])
    problems: list[str] = []
    for row in run_driver(parts["area"], None, arguments, arguments, how=how, step=step):
        at = f"stopped at change {row['stop_at']}"
        stopped, finished = parts["area"] / "stopped", parts["area"] / "parent"
        if row["died"] not in {code, 0}:
            problems.append(f"{at}: exit {row['died']}")
        if (stopped / "out").exists() and content(stopped / "out") != expected:
            problems.append(f"{at}: half an export")
        if how != "kill" and stagings(stopped):
            problems.append(f"{at}: left {stagings(stopped)}")
        if row["again"] != 0 or content(finished / "out") != expected:
            problems.append(f"{at}: the rerun exits {row['again']}")
        elif left := stagings(finished):
            problems.append(f"{at}: after the rerun there is {left}")
        else:
            assert_intact(finished / "out")
    assert not problems, "\n".join(problems)


@pytest.fixture(params=nightly(["merged", "swappable", "batched", "int4"], but=3))
def verified(request, tiny: TinyModels, tmp_path: Path) -> dict[str, Any]:
    """A base, two adapters that are not alike, and a verified export with the first of them.

    ``int4`` is a merged export with quantized weights, to which adapters are added with the base.
    """
    from lora_export.cli import run

    base = tiny.base("bert", TASK)
    first = tiny.adapter(base, r=4, seed=1, labels_count=3, modules_to_save=["classifier"])
    second = tiny.adapter(base, r=2, seed=3, labels_count=2, modules_to_save=["classifier"])
    out = tmp_path / "prepared"
    quantized = request.param == "int4"
    mode = ["--mode", "merged", "--quantize", "int4"] if quantized else ["--mode", request.param]
    assert run(["merge-and-build", "--quiet", "--base", str(base), "--task", TASK, *mode,
                f"--adapter=first={first}", "--out", str(out)]) == 0  # fmt: skip
    assert (out / "golden" / "first.npz").is_file()
    assert (out / "reports" / "parity.json").is_file()
    (tmp_path / "area").mkdir()
    return {"mode": request.param, "second": second, "export": out, "area": tmp_path / "area",
            "base": ["--base", str(base)] if quantized else []}  # fmt: skip


def answers(export: Path) -> dict[str, list[Any]]:
    """Return the adapters of an export by what each says, all of its files being what they were."""
    from lora_export.core.manifest import read_manifest
    from lora_export.exports.integrity import audit
    from lora_export.runtime import open_export

    with open_export(export, check_hashes=True) as session:
        found = {
            name: session.run(FEEDS, adapter=name)["logits"].tolist() for name in session.adapters
        }
    assert audit(export, read_manifest(export), hashed=True).problems == ()
    return found


@pytest.mark.parametrize(("how", "code", "step"), [("kill", -9, 1), ("SIGTERM", 143, 5)])
@pytest.mark.parametrize("verb", ["add", "replace", "remove"])
def test_change_stopped_anywhere_leaves_the_old_or_the_new(verified, verb, how, code, step) -> None:
    """Every file intact, every adapter the old or the new one; the next change tidies up."""
    from lora_export.cli import run

    out, whole = verified["area"] / "parent" / "out", verified["area"] / "whole"
    second = verified["second"]
    arguments = {
        "add": ["add", "EXPORT", "--adapter", f"second={second}", *verified["base"]],
        "replace": [
            "add",
            "EXPORT",
            "--adapter",
            f"first={second}",
            "--replace",
            *verified["base"],
        ],
        "remove": ["remove", "EXPORT", "first"],
    }[verb]
    given = {
        export: [str(export if each == "EXPORT" else each) for each in arguments]
        for export in (out, whole)
    }
    shutil.copytree(verified["export"], whole)
    assert run(given[whole]) == 0
    old, new = answers(verified["export"]), answers(whole)
    assert old != new
    again = [*given[out], "--replace"] if verb == "add" else given[out]
    expected = set(snapshot(whole))
    problems: list[str] = []
    for row in run_driver(
        verified["area"], verified["export"], given[out], again, how=how, step=step
    ):
        at = f"stopped at change {row['stop_at']}"
        stopped = verified["area"] / "stopped" / "out"
        if row["died"] not in {code, 0}:
            problems.append(f"{at}: exit {row['died']}")
        try:
            now = answers(stopped)
        except Exception as error:  # noqa: BLE001  (whatever a user would meet)
            problems.append(f"{at}: {type(error).__name__}: {error}")
            continue
        if now not in (old, new):
            problems.append(f"{at}: holds {sorted(now)}, neither the old nor the new")
        done = row["again"] == 0 or (verb == "remove" and now == new and row["again"] == 3)
        if not done or answers(out) != new:
            problems.append(f"{at}: the rerun exits {row['again']}")
        elif left := stagings(out.parent):
            problems.append(f"{at}: after the rerun there is {left}")
        elif odd := sorted(expected ^ set(snapshot(out))):
            problems.append(f"{at}: after the rerun these differ: {odd}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(("how", "code", "step"), [("kill", -9, 1), ("SIGINT", 130, 3)])
def test_merge_stopped_anywhere_leaves_nothing_or_everything(
    tmp_path: Path, how: str, code: int, step: int
) -> None:
    """Into shards; ``--unmerge``, which trusts a merge, takes none of what a stop left."""
    from lora_export.cli import run

    base, adapter = save_checkpoint(tmp_path / "base"), save_adapter(tmp_path / "adapter")
    arguments = ["merge", "--quiet", "--base", base, "--adapter", f"a={adapter}",
                 "--max-shard-size", "700B", "--out"]  # fmt: skip
    area = tmp_path / "area"
    whole, out = area / "whole" / "out", area / "parent" / "out"
    assert run([str(each) for each in (*arguments, whole)]) == 0
    expected = snapshot(whole)
    assert sum(name.endswith(".safetensors") for name in expected) > 2
    problems: list[str] = []
    for row in run_driver(area, None, [*arguments, out], [*arguments, out], how=how, step=step):
        at = f"stopped at change {row['stop_at']}"
        stopped = area / "stopped"
        if row["died"] not in {code, 0}:
            problems.append(f"{at}: exit {row['died']}")
        if (stopped / "out").exists() and snapshot(stopped / "out") not in ({}, expected):
            problems.append(f"{at}: half a checkpoint")
        if how != "kill" and stagings(stopped):
            problems.append(f"{at}: left {stagings(stopped)}")
        for staging in (each for each in stopped.glob(".lora-export-*") if each.is_dir()):
            undo = ["merge", "--unmerge", staging, "--base", base, "--out", tmp_path / "back"]
            whole_record = (staging / "lora_export.merge.json").is_file()
            if not whole_record and run([str(each) for each in undo]) == 0:
                problems.append(f"{at}: {staging.name} is trusted")
        if row["again"] not in {0, 3} or snapshot(out) != expected:
            problems.append(f"{at}: the rerun exits {row['again']}")
        if row["again"] == 3 and row["died"] == code and not (stopped / "out").exists():
            problems.append(f"{at}: the rerun refuses")
        if left := stagings(area / "parent"):
            problems.append(f"{at}: after the rerun there is {left}")
    assert not problems, "\n".join(problems)


SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
real = os.fsync
def slow(descriptor):
    print("writing", flush=True)
    time.sleep(60)
    real(descriptor)
os.fsync = slow
from lora_export.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signal_while_weights_are_written(parts, tmp_path: Path, number, code) -> None:
    """As a user does it: Ctrl-C or kill from outside, then the same command again."""
    out = tmp_path / "parent" / "out"
    arguments = ["export", "--base", str(parts["base"]), "--task", TASK,
                 "--adapter", f"first={parts['first']}", "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert not out.exists()
    if number == signal.SIGKILL:
        assert len(stagings(out.parent)) == 1
    else:
        assert not out.parent.exists() or list(out.parent.iterdir()) == []
    again = python("-m", "lora_export", *arguments)
    assert again.code == 0, again.err
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert_intact(out)


def test_work_of_a_living_process_is_not_swept_away(parts, tmp_path: Path) -> None:
    """A second build beside a slow first one leaves the first one's folder alone."""
    parent = tmp_path / "parent"
    arguments = ["export", "--base", str(parts["base"]), "--task", TASK, "--out"]
    slow = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments, str(parent / "slow")],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "writing\n"
        assert python("-m", "lora_export", *arguments, str(parent / "quick")).code == 0
        (staging,) = parent.glob(".lora-export-*")
        assert any(path.is_file() for path in staging.rglob("*.safetensors"))
    finally:
        slow.kill()
        slow.communicate()
    shutil.rmtree(parent)
