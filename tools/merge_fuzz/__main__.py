"""``python -m tools.merge_fuzz``: run cases, print what became of them, fail at a fault."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

import torch

from tools.merge_fuzz.run import run_parallel
from tools.merge_fuzz.summary import Summary, describe, traits

if TYPE_CHECKING:
    from collections.abc import Sequence

_EVERY_SECONDS = 30


def main(words: Sequence[str]) -> int:
    """Run what `words` ask for; return 1 where there was a fault."""
    asked = _parser().parse_args(words)
    torch.set_num_threads(1)
    if asked.case:
        seed, index = map(int, asked.case.split(":"))
        indices: range = range(index, index + 1)
    else:
        seed, indices = asked.seed, range(asked.start, asked.start + asked.count)
    summary, shown = Summary(), time.monotonic()
    for result in run_parallel(seed, indices, asked.jobs, graphs=asked.graphs):
        before = len(summary.faults)
        summary.add(result)
        if asked.case:
            print(traits(result))
            for outcome in filter(None, (result.outcome, result.graph)):
                print(describe(result, outcome))
        for fault in summary.faults[before:] if not asked.case else ():
            print(describe(*fault), flush=True)
        if time.monotonic() - shown > _EVERY_SECONDS:
            shown = time.monotonic()
            print(f"… {summary.line()} (last {seed}:{result.index})", file=sys.stderr, flush=True)
    if not asked.case:
        print(summary.text(verbose=asked.verbose))
    return 1 if summary.faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.merge_fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="how many cases")
    parser.add_argument("--start", type=int, default=0, help="the index of the first one")
    parser.add_argument("--seed", type=int, default=1, help="what they are drawn from")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--graphs", type=float, default=0.05, help="the share with a graph")
    parser.add_argument("--case", metavar="SEED:INDEX", help="run one case and print all of it")
    parser.add_argument("--verbose", action="store_true", help="with examples of every refusal")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
