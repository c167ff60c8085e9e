"""A second export of an architecture takes its graph from the cache, without torch; ``--help``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import _measure

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = "graph_cache"
NARROW = {"roberta-narrow": "RoBERTa, 12 layers", "llama-narrow": "Llama, 22 layers"}
FULL = "roberta-base"
HELP_RUNS = 10
RUNS_PER_REPETITION = 3
HEAVY = ("torch", "transformers", "accelerate", "peft", "onnxruntime", "onnxscript", "onnx_ir")
LIST_IMPORTS = f"""\
import json, sys
from lora_export.cli import run
code = run(sys.argv[1:])
assert code == 0, code
print(json.dumps({{"imported": [name for name in {HEAVY!r} if name in sys.modules]}}))
"""
METHOD = (
    "'Weights not counted': checkpoints with the layers of the real models but narrow (a few MB of "
    "weights), so that graph, manifest and start-up are of full size and the weights take next to "
    "nothing. The first export fills the cache; the following ones, from a checkpoint with other "
    "weights to a new directory, are measured as whole processes. The full RoBERTa-base from the "
    "cache, weights counted, stands beside them. What is imported is read from sys.modules at the "
    "end of such an export, run once more in-process and unmeasured."
)


class Case:
    """One architecture: two checkpoints of it, an adapter, a fresh output directory each time."""

    def __init__(self, session: _measure.Session, model: str) -> None:
        self._session = session
        self._out = session.work / f"{model}-out"
        self._adapter = session.generate("adapter", model, f"{model}-adapter", seed=1)
        self._first = session.generate("base", model, f"{model}-first", seed=2)
        self._second = session.generate("base", model, f"{model}-second", seed=3)

    def trace(self) -> _measure.Run:
        """Export the first checkpoint: the cache has no graph yet."""
        return self._done(self._session.ours(*self._words(self._first)))

    def again(self) -> _measure.Run:
        """Export the second checkpoint from the cached graph."""
        return self._done(self._session.ours(*self._words(self._second)))

    def imported(self) -> list[str]:
        """Return the heavy libraries that such an export has imported."""
        command = [sys.executable, "-c", LIST_IMPORTS, *self._words(self._second)]
        found: list[str] = self._session.answer(command)["imported"]
        self._session.remove(self._out)
        return found

    def _words(self, base: Path) -> list[str | Path]:
        return [
            "merge-and-build", "--no-verify", "--base", base,
            "--adapter", f"tenant={self._adapter}", "--out", self._out,
        ]  # fmt: skip

    def _done(self, run: _measure.Run) -> _measure.Run:
        self._session.remove(self._out)
        return run


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__)
    with _measure.Session(CLAIM, options, peers=False) as session:
        cases = {title: Case(session, model) for model, title in NARROW.items()}
        full = Case(session, FULL)
        traced = {title: [case.trace()] for title, case in cases.items()}
        full_traced = full.trace()
        imported = {title: case.imported() for title, case in cases.items()}
        session.ours("--help")

        cached: dict[str, list[_measure.Run]] = {title: [] for title in cases}
        full_cached, helps = [], []
        for _ in session.repetitions():
            for _ in range(RUNS_PER_REPETITION):
                for title, case in cases.items():
                    cached[title].append(case.again())
            full_cached.append(full.again())
        helps = [session.ours("--help") for _ in range(HELP_RUNS)]

        measured = {}
        for title in cases:
            measured[f"{title}: traced"] = _measure.summarise_runs(traced[title])
            measured[f"{title}: from the cache"] = _measure.summarise_runs(cached[title])
        session.report(
            "A second export of the same architecture, whole process; --help",
            METHOD,
            {
                **measured,
                "RoBERTa-base in full: traced": _measure.summarise_runs([full_traced]),
                "RoBERTa-base in full: cache": _measure.summarise_runs(full_cached),
                "--help": _measure.summarise_runs(helps),
            },
            [
                *(
                    _measure.median_target(f"{title}: seconds from the cache", 2.0,
                                           _measure.walls(runs))
                    for title, runs in cached.items()
                ),
                *(
                    _measure.Target(f"{title}: torch imported", "is", limit=False,
                                    measured="torch" in names)
                    for title, names in imported.items()
                ),
                _measure.median_target("seconds of --help", 0.2, _measure.walls(helps)),
            ],
            heavy_libraries_imported=imported,
        )  # fmt: skip


if __name__ == "__main__":
    main()
