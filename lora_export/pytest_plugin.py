"""A pytest plugin: the latency and the parity of an export as tests of the user's own.

    def test_latency(lora_export_bench):
        lora_export_bench("build/roberta", lengths=(128,), baseline="tests/latency.json")

    def test_parity(lora_export_parity):
        lora_export_parity("build/roberta")

Paths are relative to pytest's root folder, so that a baseline lies in the user's repository;
``pytest --lora-export-update-baseline`` writes it. A test fails where the gate or the parity
fails; what stays ambiguous or could not be compared is told at the end of the run, and fails with
``--lora-export-strict`` or ``@pytest.mark.lora_export(strict=True)``. The marker's further keywords
are defaults of `lora_export_bench`: on a class or a module, they are said once.

Measuring beside other tests measures those too. With pytest-xdist and ``--dist loadgroup``, all
other workers wait while a test that measures runs; another distribution over several workers is
refused. Tests that measure are put in one group, so that one worker runs them; pytest-xdist 3.8
does not see groups with pytest 9.2, and the wait holds without them.

Nothing but pytest is imported here: what measures is loaded by the first test that asks for it.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from lora_export.commands.bench import Benchmark
    from lora_export.commands.outcome import Outcome
    from lora_export.latency.bench_report import GateRow

__all__ = ["XDIST_GROUP", "lora_export_bench", "lora_export_parity"]

XDIST_GROUP: Final = "lora_export_bench"
_MARKER: Final = (
    "lora_export(strict=False, **settings): defaults of lora_export_bench; strict of both fixtures"
)
_FIXTURE: Final = "lora_export_bench"
_PARALLEL: Final = (
    "latency is not measured beside the tests of other workers: run these tests with -n 0, or all "
    "of them with --dist loadgroup, where other workers wait meanwhile; the fixture has to be "
    "an argument of the test or of one of its fixtures"
)
_OPEN: Final = frozenset({"ambiguous", "unverified"})
_PROPERTY: Final = "lora_export"
_UPDATE: Final = "--lora-export-update-baseline"
_TURNS: Final = pytest.StashKey[Any]()
_ALONE: Final = pytest.StashKey[bool]()
_WRITTEN: Final = pytest.StashKey[dict[Path, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two flags."""
    group = parser.getgroup("lora-export")
    group.addoption(
        _UPDATE,
        action="store_true",
        help="write the baselines of lora_export_bench instead of comparing with them",
    )
    group.addoption(
        "--lora-export-strict",
        action="store_true",
        help="fail what lora-export's gates leave ambiguous or unverified",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put what measures in one group."""
    measures = _FIXTURE in getattr(item, "fixturenames", ())
    if measures and item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group(XDIST_GROUP))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take part in the turns of workers that share the tests and measure."""
    worker = _of_several(session.config)
    if worker is None or not session.config.getvalue("loadgroup"):
        return
    if any(_FIXTURE in getattr(item, "fixturenames", ()) for item in session.items):
        from lora_export.core.process_turns import Turns

        folder = Path(tempfile.gettempdir()) / f"lora-export-turns-{worker['testrunuid']}"
        session.config.stash[_TURNS] = Turns(folder)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the turns."""
    turns = session.config.stash.get(_TURNS, None)
    if turns is not None:
        del session.config.stash[_TURNS]
        turns.close()


@pytest.hookimpl(hookwrapper=True, tryfirst=True)  # waiting is not part of a test's time
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, None, None]:
    """Run what measures while no other worker runs a test."""
    with _turn(item):
        yield


@contextlib.contextmanager
def _turn(item: pytest.Item) -> Iterator[None]:
    turns = item.config.stash.get(_TURNS, None)
    if turns is None:
        yield
        return
    alone = _FIXTURE in getattr(item, "fixturenames", ())
    with turns.take(alone=alone):
        item.stash[_ALONE] = alone
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the tests measured, those of other workers included."""
    reports = [
        report
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, [])
        if getattr(report, "when", None) == "call"
    ]
    lines = [
        f"{report.nodeid}: {text}"
        for report in reports
        for name, text in report.user_properties
        if name == _PROPERTY
    ]
    if lines:
        terminalreporter.section("lora-export")
        for line in lines:
            terminalreporter.line(line)


@dataclass(frozen=True)
class _Settings:
    """The settings from a test's marker and the command line."""

    root: Path
    strict: bool
    update: bool
    defaults: dict[str, Any]
    tell: Callable[[str], None]
    test: str
    written: dict[Path, str]

    def path(self, given: str | Path) -> Path:
        """Return a path that is relative to pytest's root folder."""
        return self.root / given

    def located(self, given: dict[str, Any], *names: str) -> dict[str, Any]:
        """Return arguments with paths of those names; a base that is not there is a hub's id."""
        found = {name: self.path(given[name]) for name in names if given.get(name) is not None}
        if given.get("base") is not None and self.path(given["base"]).exists():
            found["base"] = self.path(given["base"])
        return {**given, **found}

    def claim(self, baseline: Path, own: set[Path]) -> None:
        """Fail where another measurement of this run has written the same file.

        Args:
            baseline: The file.
            own: What this run of the test has written; a repetition writes it again.
        """
        from lora_export.ondevice.file_opening import real_path

        file = real_path(baseline)
        other = self.written.setdefault(file, self.test)
        if other != self.test or file in own:
            pytest.fail(
                f"{baseline} was written for {other} in this run: a measurement needs a file of "
                "its own",
                pytrace=False,
            )
        own.add(file)


def _settings(request: pytest.FixtureRequest) -> _Settings:
    defaults: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("lora_export"))):  # the closest one last
        defaults |= marker.kwargs
    strict = bool(defaults.pop("strict", False))
    properties = request.node.user_properties
    return _Settings(
        root=request.config.rootpath,
        strict=strict or request.config.getoption("--lora-export-strict"),
        update=request.config.getoption("--lora-export-update-baseline"),
        defaults=defaults,
        tell=lambda text: properties.append((_PROPERTY, text)),
        test=request.node.nodeid,
        written=request.config.stash.setdefault(_WRITTEN, {}),
    )


def _of_several(config: pytest.Config) -> dict[str, Any] | None:
    """Return what xdist tells this worker, where there are others; None where there are none."""
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    return worker if worker is not None and worker["workercount"] > 1 else None


@contextlib.contextmanager
def _without_traceback() -> Iterator[None]:
    """Fail the test with the message of a foreseen error: it says what is wrong and what to do."""
    from lora_export.core.errors import LoraExportError

    try:
        yield
    except LoraExportError as error:
        raise pytest.fail.Exception(_for_pytest(str(error)), pytrace=False) from None


def _for_pytest(text: str) -> str:
    """Return a text of the command line with pytest's flag."""
    return text.replace("--update-baseline", f"pytest {_UPDATE}")


@pytest.fixture
def lora_export_bench(request: pytest.FixtureRequest) -> Callable[..., Benchmark]:
    """Return a function that times an export and fails the test where the gate does.

    Its arguments are those of `lora_export.bench`. Without `against` and without
    `baseline` the ratios are over the base graph of the same export. No report is left in the
    export unless `report` says where.
    """
    if _of_several(request.config) and not request.node.stash.get(_ALONE, False):
        pytest.fail(_PARALLEL, pytrace=False)
    settings = _settings(request)
    folder: Path = request.getfixturevalue("tmp_path")
    written: set[Path] = set()

    def measure(output: str | Path, **given: Any) -> Benchmark:
        from lora_export.commands.bench import DEFAULT_MAX_RATIO, bench

        arguments: dict[str, Any] = {
            "startup": False, "report": folder / "bench.json", **settings.defaults, **given,
        }  # fmt: skip
        arguments.setdefault("max_ratio", DEFAULT_MAX_RATIO)
        arguments = settings.located(arguments, "against", "baseline", "report")
        if settings.update and arguments.get("baseline") is not None:
            settings.claim(arguments["baseline"], written)
            arguments["update_baseline"] = True
        with _without_traceback():
            found = bench(settings.path(output), **arguments)
        if found.baseline is not None:
            _conclude([("pass", f"baseline written: {found.baseline}")], settings)
            return found
        gate = found.report.gate
        _conclude([_finding(row) for row in (gate.rows if gate is not None else ())], settings)
        return found

    return measure


@pytest.fixture
def lora_export_parity(request: pytest.FixtureRequest) -> Callable[..., Outcome]:
    """Return a function that verifies an export and fails the test where the parity does.

    Its arguments are those of `lora_export.commands.verify.verify`: without `base`, the golden
    outputs of the export are compared.
    """
    settings = _settings(request)

    def verify(output: str | Path, **given: Any) -> Outcome:
        from lora_export.commands import verify as verify_command

        given = settings.located(given, "dataset", "disagreements")
        with _without_traceback():
            outcome = verify_command.verify(settings.path(output), **given)
        report = outcome.reports.parity
        rows = report.graphs if report is not None else {}
        losses = outcome.reports.quantization
        lost = losses.graphs if losses is not None else {}
        _conclude(
            [
                *(
                    (row.verdict, f"parity of {name}: {row.verdict}: {row.reason}")
                    for name, row in rows.items()
                ),
                *(
                    (row.verdict, f"quantization of {name}: {row.verdict}: {row.reason}")
                    for name, row in lost.items()
                    if row.verdict != "ungated"
                ),
            ],
            settings,
        )
        return outcome

    return verify


def _finding(row: GateRow) -> tuple[str, str]:
    shown = "" if row.ratio is None else f"{row.ratio:.3f} times {row.over}, "
    said = f"{row.subject}, {row.cell}: {shown}{row.verdict}: {row.reason}"
    return row.verdict, _for_pytest(said)


def _conclude(findings: Sequence[tuple[str, str]], settings: _Settings) -> None:
    """Report findings, each a verdict and its text; fail the test where one is a failure."""
    from lora_export.ondevice.printable import printable_line

    lines = [(verdict, str(printable_line(text))) for verdict, text in findings]
    for _, line in lines:
        settings.tell(line)
    failing = {"fail", *(_OPEN if settings.strict else ())}
    if failed := [line for verdict, line in lines if verdict in failing]:
        pytest.fail("\n".join(failed), pytrace=False)
