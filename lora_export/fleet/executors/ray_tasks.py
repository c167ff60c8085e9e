"""Rows as tasks of Ray Core: ``fleet run --ray ADDRESS``.

    demand        num_cpus=1, memory=, resources={"target:NAME": 1}
    back-pressure at most twice as many tasks as the cluster has processors are with it
    a worker or a node is lost, or the time is over     the answer says so; the run tries again

A task is JSON, the name of a function of this package, and nothing else; so is its answer. Ray's
own pickling serves the call of `call_entry`, inside of a cluster that the user trusts. Ray itself
retries nothing: the run decides by the kind of failure.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import MissingRuntimeError
from lora_export.core.installation import install_command
from lora_export.fleet.executors.contract import Answer, late_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.fleet.executors.contract import Demand

__all__ = ["RayExecutor", "call_entry"]

_EACH: Final = 2
_AT_LEAST: Final = 4
_TASKS_EACH: Final = 100
"""A worker that has done so many tasks is replaced: its memory is given back."""

_LATE_CODE: Final = 124
_QUEUED_FACTOR: Final = 4.0
_QUEUED_SECONDS: Final = 600.0
"""A task that waits in Ray's queue has not begun: it is given up after a multiple of its limit."""

_RESOURCE_SECONDS: Final = 60.0
_RESOURCE: Final = "target:"
_SAID: Final = 500
_PAUSE_SECONDS: Final = 2.0
_LONGEST_PAUSE_SECONDS: Final = 30.0
"""Ray notices a dead node after about fifteen seconds, and gives it tasks until then."""

_CONNECT_SECONDS: Final = 10.0


def call_entry(entry: str, text: str, limit_seconds: float = threading.TIMEOUT_MAX) -> str:
    """Call a function with a task and return its answer; both are JSON.

    Args:
        entry: ``MODULE:FUNCTION``, as the worker has it installed.
        text: The task.
        limit_seconds: The time after which the worker ends itself in the middle of it.
    """
    module, _, name = entry.partition(":")
    limit = threading.Timer(min(limit_seconds, threading.TIMEOUT_MAX), os._exit, [_LATE_CODE])
    limit.daemon = True
    limit.start()
    try:
        return json.dumps(getattr(importlib.import_module(module), name)(json.loads(text)))
    finally:
        limit.cancel()


class RayExecutor:
    """Tasks of a Ray cluster.

    Args:
        address: Of the cluster: ``HOST:PORT``, ``ray://HOST:PORT``, or ``auto``.
        entry: ``MODULE:FUNCTION`` that does a task on a worker.
        resource_seconds: How long a task waits for a node with the resource of its target.

    Raises:
        MissingRuntimeError: Ray is not installed, or no cluster answers.
    """

    is_away = True

    def __init__(
        self, address: str, entry: str, *, resource_seconds: float = _RESOURCE_SECONDS
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            msg = "--ray needs the package ray, which is not installed"
            raise MissingRuntimeError(msg, hint=f"Install it {install_command('ray')}") from error
        _require_open(address)
        self._ray: Any = ray
        self._entry, self._resource_seconds = entry, resource_seconds
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            self._refresh()
        except Exception as error:  # connection, version, authentication: no common class
            raise _unanswered(address, error) from error
        self._call: Any = ray.remote(max_retries=0, max_calls=_TASKS_EACH)(call_entry)
        self._running: dict[Any, str] = {}
        self._placed_at: dict[Any, tuple[float, float]] = {}
        self._waiting: dict[str, tuple[Mapping[str, Any], Demand, float]] = {}
        self._paused: dict[str, tuple[Mapping[str, Any], Demand, float]] = {}

    @property
    def free(self) -> int:
        """The number of tasks that can be handed over now."""
        most = max(_AT_LEAST, _EACH * self._processors)
        return most - len(self._running) - len(self._waiting) - len(self._paused)

    def submit(self, name: str, task: Mapping[str, Any], demand: Demand) -> None:
        """Hand over a task; one that was lost before waits until a dead node is known to be dead.

        A task whose target no node has waits for such a node.
        """
        if demand.attempt > 1:
            pause = min(_PAUSE_SECONDS**demand.attempt, _LONGEST_PAUSE_SECONDS)
            self._paused[name] = (task, demand, time.monotonic() + pause)
        else:
            self._place(name, task, demand)

    def _place(self, name: str, task: Mapping[str, Any], demand: Demand) -> None:
        """Give a task to Ray."""
        resources = {f"{_RESOURCE}{demand.target}": 1.0} if demand.target else {}
        if resources and not set(resources) <= set(self._resources):
            self._waiting[name] = (task, demand, time.monotonic() + self._resource_seconds)
            return
        memory = min(demand.memory_bytes * demand.attempt, self._largest_bytes)
        call = self._call.options(num_cpus=1, memory=memory, resources=resources, name=name)
        ref = call.remote(self._entry, json.dumps(task), demand.limit_seconds)
        self._running[ref] = name
        self._placed_at[ref] = (time.monotonic(), demand.limit_seconds)

    def wait(self, seconds: float) -> list[Answer]:
        """Return the answers that came, after at most so many seconds."""
        answers = self._placed() if self._waiting or self._paused else []
        if answers or not self._running:
            if not answers:
                time.sleep(seconds)
            return answers
        refs = list(self._running)
        done, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if done:
            done, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._answer(ref) for ref in done] + self._overdue()

    def close(self) -> None:
        """Stop the tasks; what they were doing is lost."""
        for ref in self._running:
            self._ray.cancel(ref, force=True)
        self._running.clear()
        self._waiting.clear()
        self._paused.clear()
        self._ray.shutdown()

    def _refresh(self) -> None:
        """Look at what the cluster has now."""
        self._resources: dict[str, float] = self._ray.cluster_resources()
        self._processors = int(self._resources.get("CPU", 1))
        nodes = [each["Resources"] for each in self._ray.nodes() if each["Alive"]]
        self._largest_bytes = int(max((each.get("memory", 0) for each in nodes), default=0))

    def _placed(self) -> list[Answer]:
        """Give Ray the tasks that have waited; return the answers of those that waited too long."""
        for name, (task, demand, since) in list(self._paused.items()):
            if time.monotonic() > since:
                del self._paused[name]
                self._place(name, task, demand)
        if self._waiting:
            self._refresh()
        answers = []
        for name, (task, demand, until) in list(self._waiting.items()):
            key = f"{_RESOURCE}{demand.target}"
            if key in self._resources:
                del self._waiting[name]
                self._place(name, task, demand)
            elif time.monotonic() > until:
                del self._waiting[name]
                answers.append(Answer(name, _no_node(key)))
        return answers

    def _answer(self, ref: Any) -> Answer:
        """Return the answer of a task that has ended, one way or another."""
        name = self._running.pop(ref)
        since, limit_seconds = self._placed_at.pop(ref)
        errors = self._ray.exceptions
        try:
            table = json.loads(self._ray.get(ref))
        except errors.OutOfMemoryError as error:
            return Answer(name, None, _first_line(error), for_memory=True)
        except (errors.RuntimeEnvSetupError, errors.RayTaskError) as error:
            return Answer(name, _not_called(error))
        except errors.RayError as error:
            self._refresh()
            if time.monotonic() - since > limit_seconds:
                return Answer(name, None, late_words(limit_seconds), late=True)
            return Answer(name, None, f"its worker was lost ({_first_line(error)})", lost=True)
        return Answer(name, table)

    def _overdue(self) -> list[Answer]:
        """Give up the tasks that Ray has had for much longer than they may take."""
        now = time.monotonic()
        answers = []
        for ref, (since, limit_seconds) in list(self._placed_at.items()):
            if now - since > _QUEUED_FACTOR * limit_seconds + _QUEUED_SECONDS:
                self._ray.cancel(ref, force=True)
                del self._placed_at[ref]
                name = self._running.pop(ref)
                answers.append(Answer(name, None, "Ray did not end it in time", lost=True))
        return answers


def _require_open(address: str) -> None:
    """Require that something listens at an address: Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if found is None:
        return  # auto, local: Ray looks for a cluster
    try:
        socket.create_connection((found[1], int(found[2])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unanswered(address, error) from error


def _unanswered(address: str, error: Exception) -> MissingRuntimeError:
    msg = f"no Ray cluster answers at {address!r}: {str(error)[:_SAID]}"
    hint = "Start one: ray start --head; give its address, such as 127.0.0.1:6379."
    return MissingRuntimeError(msg, hint=hint)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_SAID]


def _not_called(error: BaseException) -> dict[str, Any]:
    """Return the answer of a worker that could not call the function."""
    cause = getattr(error, "cause", None)
    missing = isinstance(cause, ImportError) or "ModuleNotFoundError" in str(error)
    said = str(error).strip().splitlines()[-1][:_SAID] if str(error).strip() else ""
    failed = {"status": "failed", "kind": type(cause or error).__name__}
    if missing:
        hint = f"On every node, {install_command('export,cpu,ray')}"
        return {**failed, "exit_code": 7, "message": f"its worker cannot import it: {said}\n{hint}"}
    return {**failed, "exit_code": 1, "message": f"its worker failed: {said}"}


def _no_node(resource: str) -> dict[str, Any]:
    return {
        "status": "failed",
        "exit_code": 7,
        "kind": "MissingRuntimeError",
        "message": (
            f"no node of the cluster has the resource {resource!r}\nOn a machine that can build "
            f"for it: ray start --address=HEAD --resources='{{\"{resource}\": 1}}'"
        ),
    }
