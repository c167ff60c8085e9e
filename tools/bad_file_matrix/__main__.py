"""``python -m tools.bad_file_matrix``: run cases, print what was wrong, fail if anything was."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tools.bad_file_matrix.cases import Case, cases_of, inputs_of, selected
from tools.bad_file_matrix.run import run_cases
from tools.bad_file_matrix.summary import Summary, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

_EVERY_SECONDS: Final = 30


def main(words: Sequence[str]) -> int:
    """Run what `words` ask for; return 1 where a command did what it may not."""
    asked = _parser().parse_args(words)
    with tempfile.TemporaryDirectory(prefix="bad-file-inputs-") as temporary:
        return _run(asked, Path(asked.inputs or temporary))


def _run(asked: argparse.Namespace, pristine: Path) -> int:
    wanted = [Case.parse(text) for text in asked.case]
    names = [each.command for each in wanted] or asked.only
    _make_inputs(pristine, inputs_of(names))
    cases = wanted or [case for target in selected(names) for case in cases_of(pristine, target)]
    chance = random.Random(asked.seed)
    if asked.count and asked.count < len(cases):
        cases = chance.sample(cases, asked.count)
    summary, began = Summary(), time.monotonic()
    shown = began
    for result in run_cases(pristine, cases, asked.jobs):
        summary.add(result)
        if wanted or result.faults:
            print(describe(result), flush=True)
        if time.monotonic() - shown > _EVERY_SECONDS:
            shown = time.monotonic()
            print(f"… {summary.line()} of {len(cases)}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    print(f"{summary.text()}, {seconds:.0f} s")
    if asked.json:
        Path(asked.json).write_text(json.dumps(summary.as_json(seconds), indent=1) + "\n")
    return 1 if summary.faults else 0


def _make_inputs(pristine: Path, names: Sequence[str]) -> None:
    """Make the inputs in a process of its own: torch's threads do not survive a fork."""
    command = [sys.executable, "-m", "tools.bad_file_matrix.inputs", str(pristine), *names]
    made = subprocess.run(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if made.returncode:
        msg = f"the inputs cannot be made:\n{made.stdout}{made.stderr}"
        raise SystemExit(msg)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bad_file_matrix", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="NAME", help="commands or inputs; all of them")
    parser.add_argument("--count", type=int, help="draw so many cases; all of them")
    parser.add_argument("--seed", type=int, default=1, help="what they are drawn from")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--inputs", metavar="FOLDER", help="make the inputs here, and keep them")
    parser.add_argument("--json", metavar="FILE", help="write the counts and the faults")
    parser.add_argument("--case", metavar="CASE", action="append", default=[],
                        help="run one case and print all of it; repeatable")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
