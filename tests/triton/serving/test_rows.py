"""Requests grouped by adapter and shape, and who fails when one is at fault."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_export.triton.serving.rows import Failure, Job, run_jobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OFFSETS = {None: 0.0, "a": 100.0, "b": 200.0}
WIDTHS = {None: 2, "a": 2, "b": 3}


class Graph:
    """Returns its input plus a number that tells the adapter; refuses negative ones."""

    def __init__(self, *, mixed: bool) -> None:
        self.mixed, self.calls = mixed, 0

    def __call__(
        self, adapters: Sequence[str | None], feeds: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        self.calls += 1
        x = feeds["x"]
        assert len(adapters) == len(x)
        assert self.mixed or len(set(adapters)) == 1
        if (x < 0).any():
            raise Failure("INVALID_ARG", "negative")
        width = max(WIDTHS[each] for each in adapters)
        own = x.sum(1, keepdims=True) + np.array([[OFFSETS[each]] for each in adapters])
        return [np.repeat(own, width, axis=1)]


def wanted(job: Job) -> np.ndarray:
    width = max(WIDTHS[each] for each in job.adapters)
    rows = np.full((len(job.adapters), width), np.finfo(np.float64).min)
    for at, name in enumerate(job.adapters):
        rows[at, : WIDTHS[name]] = job.feeds["x"][at].sum() + OFFSETS[name]
    return rows


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([None, "a", "b"]), min_size=1, max_size=4),
        st.integers(1, 2),
        st.booleans(),
    ),
    max_size=8,
)


@given(REQUESTS)
def test_every_request_gets_its_own_rows_or_its_own_failure(requests):
    random = np.random.default_rng(0)
    jobs = []
    for names, length, bad in requests:
        x = random.integers(1, 9, (len(names), length)).astype(np.float64)
        jobs.append(Job({"x": -x if bad else x}, names))
    run_jobs(jobs, Graph(mixed=False), mixed=False)
    for job, (_, _, bad) in zip(jobs, requests, strict=True):
        assert (job.failure is not None) == bad
        if not bad:
            assert np.array_equal(job.outputs[0], wanted(job))


def test_rows_of_one_adapter_and_shape_run_at_once():
    jobs = [Job({"x": np.ones((2, 3))}, ["a", None]) for _ in range(5)]
    graph = Graph(mixed=False)
    run_jobs(jobs, graph, mixed=False)
    assert graph.calls == 2
    graph = Graph(mixed=True)
    run_jobs(jobs, graph, mixed=True)
    assert graph.calls == 1


def test_what_has_failed_already_does_not_run():
    failed = Job({}, [], Failure("NOT_FOUND", "nobody"))
    run_jobs([failed], Graph(mixed=False), mixed=False)
    assert failed.outputs == []


def test_numbers_that_a_row_does_not_have_are_the_lowest():
    class Ranks(Graph):
        def __call__(
            self, adapters: Sequence[str | None], feeds: Mapping[str, np.ndarray]
        ) -> list[np.ndarray]:
            return [each.astype(np.int32) for each in super().__call__(adapters, feeds)]

    job = Job({"x": np.ones((2, 1))}, ["a", "b"])
    run_jobs([job], Ranks(mixed=False), mixed=False)
    lowest = np.iinfo(np.int32).min
    assert job.outputs[0].tolist() == [[101, 101, lowest], [201, 201, 201]]


def test_a_refused_job_lets_go_of_its_tensors():
    x = np.array([[-1.0]])
    gone = weakref.ref(x)
    job = Job({"x": x}, ["a"])
    gc.disable()
    try:
        run_jobs([job], Graph(mixed=True), mixed=True)
        assert str(job.failure) == "negative"
        del x, job
        assert gone() is None
    finally:
        gc.enable()
