"""Killed or interrupted at any moment: what is on disk is old or new, and a rerun succeeds.

A process is stopped before its k-th change to the file system, for each k. The slow tests try every
k for each verb in one mode, every fourth in the others; ``make nightly`` tries all of them.
"""

from __future__ import annotations

import itertools
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
from tests.helpers.stops import Stopper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

TASK = "text-classification"
CODES = {"kill": -9, "SIGINT": 130, "SIGTERM": 143}
FEEDS = {
    "input_ids": np.arange(3, 21).reshape(2, 9),
    "attention_mask": np.ones((2, 9), np.int64),
    "token_type_ids": np.zeros((2, 9), np.int64),
}


@pytest.fixture(scope="module")
def stopper() -> Iterator[Stopper]:
    stopper = Stopper()
    yield stopper
    stopper.close()


@pytest.fixture
def area(tmp_path: Path) -> Path:
    (tmp_path / "area").mkdir()
    return tmp_path / "area"


@pytest.fixture(scope="module")
def parts(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two adapters, and an export with the first of them; the graph is cached."""
    from lora_export.cli import run

    base = tiny.base("bert", TASK)
    first, second = tiny.adapter(base, r=4, seed=1), tiny.adapter(base, r=2, seed=3)
    out = tmp_path_factory.mktemp("parts") / "prepared"
    assert run(["export", "--quiet", "--base", str(base), "--task", TASK,
                f"--adapter=first={first}", "--out", str(out)]) == 0  # fmt: skip
    return {"base": base, "first": first, "second": second, "export": out}


def content(export: Path) -> dict[str, Any]:
    manifest = manifest_of(export)
    return {"files": manifest["files"], "adapters": set(manifest["adapters"])}


@pytest.mark.parametrize(("how", "step"), [("kill", 1), ("SIGINT", 5)])
def test_build_stopped_anywhere_leaves_nothing_or_everything(
    stopper, area, parts, how, step
) -> None:
    arguments = ["export", "--quiet", "--base", parts["base"], "--task", TASK,
                 "--adapter", f"first={parts['first']}", "--out",
                 area / "parent" / "out"]  # fmt: skip
    expected = content(parts["export"])
    problems: list[str] = []
    for row in stopper.stop(area, None, arguments, arguments, how=how, step=step):
        at = f"stopped at change {row['stop_at']}"
        stopped, finished = area / "stopped", area / "parent"
        if row["died"] not in {CODES[how], 0}:
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


@pytest.fixture(scope="module")
def exports() -> dict[str, dict[str, Any]]:
    """Exports by mode, as `verified` makes them."""
    return {}


@pytest.fixture
def verified(
    request, exports, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A base, two adapters that are not alike, and a verified export with the first of them.

    ``int4`` is a merged export with quantized weights, to which adapters are added with the base.
    """
    from lora_export.cli import run

    if request.param in exports:
        return dict(exports[request.param])
    base = tiny.base("bert", TASK)
    first = tiny.adapter(base, r=4, seed=1, labels_count=3, modules_to_save=["classifier"])
    second = tiny.adapter(base, r=2, seed=3, labels_count=2, modules_to_save=["classifier"])
    out = tmp_path_factory.mktemp("verified") / "prepared"
    quantized = request.param == "int4"
    mode = ["--mode", "merged", "--quantize", "int4"] if quantized else ["--mode", request.param]
    assert run(["merge-and-build", "--quiet", "--base", str(base), "--task", TASK, *mode,
                f"--adapter=first={first}", "--out", str(out)]) == 0  # fmt: skip
    assert (out / "golden" / "first.npz").is_file()
    assert (out / "reports" / "parity.json").is_file()
    given = ["--base", str(base)] if quantized else []
    exports[request.param] = {"second": second, "export": out, "base": given}
    return dict(exports[request.param])


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


def changes() -> list[Any]:
    """Return each verb in each mode, with each way to stop it and the step between stops."""
    found = []
    whole = {("merged", "add"), ("swappable", "replace"), ("batched", "remove")}
    for mode, verb in itertools.product(
        ("merged", "swappable", "batched", "int4"), ("add", "replace", "remove")
    ):
        at_night = () if (mode, verb) in whole else pytest.mark.nightly
        rare = pytest.mark.nightly if mode == "int4" else ()
        found += [
            pytest.param(mode, (verb, "kill", 1), marks=at_night),
            pytest.param(mode, (verb, "SIGTERM", 5), marks=rare),
        ]
        if at_night and not rare:
            found.append(pytest.param(mode, (verb, "kill", 4)))
    return found


@pytest.mark.parametrize(
    ("verified", "change"), changes(), indirect=["verified"],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)  # fmt: skip
def test_change_stopped_anywhere_leaves_the_old_or_the_new(stopper, area, verified, change) -> None:
    """Every file intact, every adapter the old or the new one; the next change tidies up."""
    from lora_export.cli import run

    verb, how, step = change
    out, whole = area / "parent" / "out", area / "whole"
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
    for row in stopper.stop(area, verified["export"], given[out], again, how=how, step=step):
        at = f"stopped at change {row['stop_at']}"
        stopped = area / "stopped" / "out"
        if row["died"] not in {CODES[how], 0}:
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


@pytest.mark.parametrize(("how", "step"), [("kill", 1), ("SIGINT", 3)])
def test_merge_stopped_anywhere_leaves_nothing_or_everything(
    stopper, area, tmp_path: Path, how: str, step: int
) -> None:
    """Into shards; ``--unmerge``, which trusts a merge, takes none of what a stop left."""
    from lora_export.cli import run

    base, adapter = save_checkpoint(tmp_path / "base"), save_adapter(tmp_path / "adapter")
    arguments = ["merge", "--quiet", "--base", base, "--adapter", f"a={adapter}",
                 "--max-shard-size", "700B", "--out"]  # fmt: skip
    whole, out = area / "whole" / "out", area / "parent" / "out"
    assert run([str(each) for each in (*arguments, whole)]) == 0
    expected = snapshot(whole)
    assert sum(name.endswith(".safetensors") for name in expected) > 2
    problems: list[str] = []
    for row in stopper.stop(area, None, [*arguments, out], [*arguments, out], how=how, step=step):
        at = f"stopped at change {row['stop_at']}"
        stopped = area / "stopped"
        if row["died"] not in {CODES[how], 0}:
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
        if row["again"] == 3 and row["died"] == CODES[how] and not (stopped / "out").exists():
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
