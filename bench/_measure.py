"""Whole processes, measured from outside: wall time, peak memory, medians, targets, the report.

Wall time is a monotonic clock around the process; peak memory is the kernel's ``ru_maxrss`` of the
process and of its children, from ``wait4``. A child's figure starts at its parent's, so this
process imports nothing heavy, and its own peak is in every report as the floor.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import _environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

BENCH: Final = Path(__file__).resolve().parent
RESULTS: Final = BENCH / "results"
_TAIL_CHARACTERS: Final = 3000
_RSS_UNIT_BYTES: Final = 1024  # Linux counts ru_maxrss in KiB


@dataclass(frozen=True)
class Run:
    """One process, or several one after another: seconds, and the largest resident memory."""

    wall_s: float
    peak_bytes: int

    def __add__(self, other: Run) -> Run:
        return Run(self.wall_s + other.wall_s, max(self.peak_bytes, other.peak_bytes))


@dataclass(frozen=True)
class Target:
    """A claim, and what was measured: the value from medians, and its range over repetitions."""

    what: str
    kind: Literal["at most", "at least", "is"]
    limit: float | bool
    measured: float | bool
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool:
        """Whether the median meets the limit."""
        if self.kind == "at most":
            return self.measured <= self.limit
        if self.kind == "at least":
            return self.measured >= self.limit
        return self.measured is self.limit


LOWER_END: Final = 1.0
MEDIAN: Final = 1.02


def at_most_one(what: str, ratio: float, interval: Sequence[float]) -> Target:
    """Return the target that a paired ratio is at most 1.00.

    It is met where the lower end of the interval is at most 1.00, and the median at most 1.02.
    """
    low, high = interval
    met = low <= LOWER_END and ratio <= MEDIAN
    return Target(f"{what} ({ratio})", kind="is", limit=True, measured=met, spread=(low, high))


def ratio_target(
    what: str,
    kind: Literal["at most", "at least"],
    limit: float,
    above: Sequence[float],
    below: Sequence[float],
) -> Target:
    """Return a target on ``median(above) / median(below)``; the spread is that of the pairs."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    ratio = statistics.median(above) / statistics.median(below)
    return Target(what, kind, limit, round(ratio, 4), (round(min(pairs), 4), round(max(pairs), 4)))


def ratio(above: Sequence[float], below: Sequence[float], what: str) -> dict[str, Any]:
    """Return a ratio of medians that is told beside the targets."""
    target = ratio_target(what, "at most", float("inf"), above, below)
    return {"what": what, "measured": target.measured, "range": target.spread}


def median_target(what: str, limit: float, samples: Sequence[float]) -> Target:
    """Return a target on the median of `samples`."""
    middle = round(statistics.median(samples), 4)
    return Target(what, "at most", limit, middle, (round(min(samples), 4), round(max(samples), 4)))


def walls(runs: Sequence[Run]) -> list[float]:
    """Return the seconds of each run."""
    return [run.wall_s for run in runs]


def peaks_mb(runs: Sequence[Run]) -> list[float]:
    """Return the peak of each run in MB (10⁶ bytes)."""
    return [run.peak_bytes / 1e6 for run in runs]


def summarise(samples: Sequence[float]) -> dict[str, Any]:
    """Return median, minimum, maximum and the samples in the order they were taken."""
    return {
        "median": round(statistics.median(samples), 4),
        "min": round(min(samples), 4),
        "max": round(max(samples), 4),
        "samples": [round(sample, 4) for sample in samples],
    }


def pop_samples(rows: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Take the samples of each side out of `rows`, and return them summarised; mutates."""
    return {
        name: {side: summarise(values) for side, values in row.pop("samples_ms").items()}
        for name, row in rows.items()
    }


def summarise_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Return wall time and peak memory of `runs`."""
    return {"wall_s": summarise(walls(runs)), "peak_mb": summarise(peaks_mb(runs))}


def arguments(
    claim: str, doc: str, *, repeat: int = 3, short: str | None = None
) -> argparse.Namespace:
    """Parse the command line that every script has; `short` describes a flag ``--short``."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=repeat, help=f"repetitions ({repeat})")
    parser.add_argument("--peers-python", type=Path, help="an environment made from peers.txt")
    parser.add_argument("--work-dir", type=Path, help="where checkpoints and exports go (build/)")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{claim}.json")
    if short is not None:
        parser.add_argument("--short", action="store_true", help=short)
    return parser.parse_args()


class Session:
    """A scratch folder, the commands of both sides, and the report of one claim.

    Use as a context manager: the scratch folder goes at the end, whatever happens.
    """

    def __init__(self, claim: str, options: argparse.Namespace, *, peers: bool = True) -> None:
        self.claim = claim
        self.repeat: int = options.repeat
        self._output: Path = options.output
        self.peers_python = _environment.ensure_peers(options.peers_python) if peers else None
        parent: Path = options.work_dir or _environment.ROOT / "build"
        parent.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix=f"bench-{claim}-", dir=parent.absolute()))
        self.cache = self.work / "cache"
        self._log = self.work / "log.txt"
        self._started = datetime.now(timezone.utc)
        self._load_before = os.getloadavg()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def repetitions(self) -> Iterator[int]:
        """Yield the repetitions, saying which one it is."""
        for index in range(self.repeat):
            print(f"{self.claim}: repetition {index + 1} of {self.repeat}", file=sys.stderr)
            yield index

    def run(self, command: Sequence[str | Path], **environment: str | Path) -> Run:
        """Run a process to its end and measure it; leave with its last words if it fails.

        Dirty pages of earlier runs are written out first, so that nobody pays for another's.
        """
        os.sync()
        with self._log.open("wb") as sink:
            start = time.monotonic()
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._environment(environment),
                cwd=self.work,
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            words = " ".join(str(part) for part in command)
            tail = self._log.read_text("utf-8", "replace")[-_TAIL_CHARACTERS:]
            sys.exit(f"error: exit code {process.returncode} of: {words}\n{tail}")
        return Run(wall_s, usage.ru_maxrss * _RSS_UNIT_BYTES)

    def answer(self, command: Sequence[str | Path]) -> dict[str, Any]:
        """Run a process that prints one JSON document last, and return it."""
        self.run(command)
        found: dict[str, Any] = json.loads(self._log.read_text("utf-8").splitlines()[-1])
        return found

    def ours(self, *words: str | Path, cache: Path | None = None) -> Run:
        """Run ``lora-export``; the graph cache is the session's unless another is given."""
        return self.run([*own_command(), *words], LORA_EXPORT_CACHE=cache or self.cache)

    def python(self, *words: str | Path) -> Run:
        """Run our interpreter."""
        return self.run([sys.executable, *words])

    def peer_merge(self, base: Path, adapter: Path, merged: Path, auto_class: str) -> Run:
        """Run PEFT's merge."""
        script = BENCH / "_peer_merge.py"
        return self.run([self._peer(), script, base, adapter, merged, auto_class])

    def peer_export(self, model: Path, output: Path, task: str) -> Run:
        """Run ``optimum-cli export onnx`` as a user would; it validates what it wrote."""
        command = self._peer().parent / "optimum-cli"
        return self.run([command, "export", "onnx", "--model", model, "--task", task, output])

    def peer_export_unchecked(self, model: Path, output: Path, task: str) -> Run:
        """Run the same export without its validation."""
        return self.run([self._peer(), BENCH / "_peer_export.py", model, output, task])

    def compare(self, *words: str | Path) -> dict[str, Any]:
        """Compare what both sides made; see ``_compare.py``."""
        return self.answer([self._peer(), BENCH / "_compare.py", *words])

    def warm_libraries(self) -> None:
        """Import both sides' libraries once, so that neither reads them from a cold disk."""
        self.run([sys.executable, "-c", "import torch, transformers, accelerate, onnxscript"])
        code = "import peft, transformers, optimum.exporters.onnx, onnxruntime"
        self.run([self._peer(), "-c", code])

    def generate(
        self, kind: str, model: str, name: str, *, seed: int = 0, shard_bytes: int | None = None
    ) -> Path:
        """Make a base or an adapter in the scratch folder; return its folder."""
        folder = self.work / name
        script = BENCH / "_checkpoints.py"
        shards = ["--shard-bytes", str(shard_bytes)] if shard_bytes else []
        self.run([sys.executable, script, kind, model, folder, "--seed", str(seed), *shards])
        return folder

    def remove(self, *folders: Path) -> None:
        """Remove what a repetition has made; a graph from a template leaves no cache."""
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)

    def report(self, what: str, method: str, measured: Mapping[str, Any],
               targets: Sequence[Target], **more: Any) -> None:  # fmt: skip
        """Write the JSON document of the claim and print its table."""
        document = {
            "claim": self.claim,
            "what": what,
            "method": method,
            "date": self._started.isoformat(timespec="seconds"),
            "machine": _environment.describe_machine(),
            **_environment.describe_commit(),
            "versions": {"ours": _environment.own_versions()},
            "load_average": {
                "before": [round(value, 2) for value in self._load_before],
                "after": [round(value, 2) for value in os.getloadavg()],
            },
            "repetitions": self.repeat,
            "floor_mb": round(
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES / 1e6, 1
            ),
            "measured": measured,
            **more,
            "targets": [
                {
                    "what": target.what,
                    target.kind.replace(" ", "_"): target.limit,
                    "measured": target.measured,
                    "range": target.spread,
                    "met": target.met,
                }
                for target in targets
            ],
        }
        if self.peers_python is not None:
            document["versions"]["peers"] = _environment.peer_versions(self.peers_python)
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        _print_table(self.claim, measured, targets)

    def _peer(self) -> Path:
        assert self.peers_python is not None, "this claim has no peers"
        return self.peers_python

    def _environment(self, more: Mapping[str, str | Path]) -> dict[str, str]:
        """Byte code is kept, as pip leaves it: an installed package is not compiled anew."""
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return {
            **inherited,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.work / "hf-home"),
            "LORA_EXPORT_CACHE": str(self.cache),
            **{key: str(value) for key, value in more.items()},
        }


def own_command() -> list[str | Path]:
    """Return the console script beside this interpreter, as a user would call it."""
    script = Path(sys.executable).parent / "lora-export"
    return [script] if script.is_file() else [sys.executable, "-m", "lora_export"]


def warm_up(*actions: Callable[[], Any]) -> None:
    """Run each action once, unmeasured: libraries and checkpoints are then in the page cache."""
    print("warming up", file=sys.stderr)
    for action in actions:
        action()


def _print_table(claim: str, measured: Mapping[str, Any], targets: Sequence[Target]) -> None:
    print(f"\n{claim}")
    for name, row in measured.items():
        for quantity, values in row.items():
            if isinstance(values, dict) and "median" in values:
                spread = f"[{values['min']:.3f}, {values['max']:.3f}]"
                print(f"  {name:34} {quantity:12} {values['median']:10.3f} {spread}")
    for target in targets:
        met = "met" if target.met else "NOT MET"
        print(f"  {target.what}: {target.measured} ({target.kind} {target.limit}): {met}")
