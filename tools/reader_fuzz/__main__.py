"""``python -m tools.reader_fuzz``: fuzz readers, print a line for each, fail at a finding."""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tools.reader_fuzz.run import Outcome, read_saved, run_watched
from tools.reader_fuzz.table import READERS

if TYPE_CHECKING:
    from collections.abc import Sequence

_MIB = 1 << 20


def main(words: Sequence[str]) -> int:
    """Run what `words` ask for; return 1 where something was found."""
    asked = _parser().parse_args(words)
    if asked.input is not None:
        read_saved(asked.reader[0], asked.input)
        print("read")
        return 0
    kept = asked.keep or Path(tempfile.mkdtemp(prefix="reader-fuzz-found-"))
    failed = False
    for name in asked.reader or sorted(READERS):
        count = -(-asked.count // (READERS[name].slowness if asked.scale else 1))
        outcome = _run(name, range(asked.start, asked.start + count), asked, kept)
        failed |= bool(outcome.found)
        print(_line(name, outcome), flush=True)
        for kind, number in outcome.found.most_common():
            example = outcome.examples[kind]
            print(f"  {number} × {kind}   {kept}/{name}-{asked.seed}-{example.index}")
            if asked.verbose:
                print("    " + example.detail.strip().replace("\n", "\n    "))
    return 1 if failed else 0


def _run(name: str, indices: range, asked: argparse.Namespace, kept: Path) -> Outcome:
    """Run the inputs of one reader in as many processes as were asked for."""
    jobs, count = asked.jobs, len(indices)
    parts = [indices[count * job // jobs : count * (job + 1) // jobs] for job in range(jobs)]
    total = Outcome()
    with ThreadPoolExecutor(jobs) as pool:
        for part in pool.map(lambda each: run_watched(name, each, asked.seed, kept), parts):
            total.read += part.read
            total.refused += part.refused
            total.seconds = max(total.seconds, part.seconds)
            total.peak_bytes = max(total.peak_bytes, part.peak_bytes)
            total.found.update(part.found)
            total.examples = {**part.examples, **total.examples}
    return total


def _line(name: str, outcome: Outcome) -> str:
    found = sum(outcome.found.values())
    return (
        f"{name}: {outcome.read + outcome.refused + found} inputs, {outcome.read} read, "
        f"{outcome.refused} refused, {found} found; {outcome.seconds:.0f} s, "
        f"peak {outcome.peak_bytes // _MIB} MiB"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.reader_fuzz", description=__doc__)
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="default: all")
    parser.add_argument("--count", type=int, default=1000, help="how many inputs for each reader")
    parser.add_argument("--start", type=int, default=0, help="the index of the first one")
    parser.add_argument("--seed", type=int, default=1, help="what they are drawn from")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--scale", action="store_true", help="fewer inputs for slow readers")
    parser.add_argument("--keep", type=Path, help="where inputs are kept that found something")
    parser.add_argument("--input", type=Path, help="read one input that was kept")
    parser.add_argument("--verbose", action="store_true", help="with the traceback of each kind")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
