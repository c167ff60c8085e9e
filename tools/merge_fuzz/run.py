"""Run cases: blocks that share a base, in this process or in several."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from tools.merge_fuzz.bases import make_base
from tools.merge_fuzz.cases import ATTEMPTS, BLOCK, draw_block, draw_case
from tools.merge_fuzz.feeds import make_feeds
from tools.merge_fuzz.graphs import judge_graph, task_of
from tools.merge_fuzz.judge import Outcome, judge_merge, kind_of, train_case
from tools.merge_fuzz.settings import inventory_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tools.merge_fuzz.bases import Base
    from tools.merge_fuzz.cases import Case
    from tools.merge_fuzz.settings import Inventory

__all__ = ["Result", "run_block", "run_parallel"]

SKIPPED: Final = "skipped"


@dataclass(frozen=True)
class Result:
    """The outcome of one case.

    Attributes:
        seed: The seed, and
        index: the index by which it is drawn again.
        outcome: What became of it; ``skipped`` where transformers or PEFT refused it.
        case: The case; None where its base could not be made.
        graph: What became of its graph, where one was built.
    """

    seed: int
    index: int
    outcome: Outcome
    case: Case | None
    graph: Outcome | None = None


def run_parallel(
    seed: int, indices: Iterable[int], jobs: int, *, graphs: float
) -> Iterator[Result]:
    """Run cases, in several processes where `jobs` is above 1.

    Args:
        seed: What they are drawn from.
        indices: Which ones.
        jobs: How many processes.
        graphs: The share of which a graph is built too.
    """
    blocks: dict[int, list[int]] = {}
    for index in indices:
        blocks.setdefault(index // BLOCK, []).append(index)
    work = [(seed, block, tuple(wanted), graphs) for block, wanted in sorted(blocks.items())]
    if jobs == 1:
        for each in work:
            yield from run_block(each)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_one_thread) as pool:
        for results in pool.imap_unordered(run_block, work):
            yield from results


def run_block(work: tuple[int, int, tuple[int, ...], float]) -> list[Result]:
    """Run the cases of one block, given as seed, block, indices, and the share with a graph."""
    seed, block, indices, graphs = work
    spec = draw_block(seed, block)
    with tempfile.TemporaryDirectory(prefix="merge-fuzz-") as temporary:
        folder = Path(temporary)
        try:
            base = make_base(spec, folder / "base")
            inventory = _inventory(base, seed)
        except Exception as error:  # noqa: BLE001  (transformers makes nothing of it)
            outcome = Outcome(SKIPPED, f"base: {kind_of(error)}", str(error))
            return [Result(seed, index, outcome, None) for index in indices]
        return [
            _run_case((seed, index), base, inventory, folder, graphs=graphs) for index in indices
        ]


def _run_case(
    name: tuple[int, int], base: Base, inventory: Inventory, folder: Path, *, graphs: float
) -> Result:
    """Run the case of a seed and an index on its base; `folder` is for its files."""
    seed, index = name
    for attempt in range(ATTEMPTS):
        case = draw_case((seed, index, attempt), base.spec, inventory, graphs=graphs)
        try:
            trained = train_case(case, base, folder / "adapter", seed=seed)
        except Exception as error:  # noqa: BLE001  (PEFT refuses the settings; draw others)
            refusal = Outcome(SKIPPED, f"PEFT: {kind_of(error)}", str(error))
            continue
        outcome = judge_merge(case, base, trained, folder)
        graph = None
        if case.mode is not None and task_of(case) is not None:
            graph = judge_graph(case, base, trained, folder, case.mode)
        for each in ("merged", "rounded", "export", "second"):
            shutil.rmtree(folder / each, ignore_errors=True)
        return Result(seed, index, outcome, case, graph)
    return Result(seed, index, refusal, None)


def _inventory(base: Base, seed: int) -> Inventory:
    feeds = make_feeds(base.model, seed)
    ids = feeds["input_ids"].flatten().tolist() if "input_ids" in feeds else []
    return inventory_of(base, sorted(set(ids)))


def _one_thread() -> None:
    torch.set_num_threads(1)
