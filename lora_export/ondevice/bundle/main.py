"""The entry point of a bundle: build or compile, verify, measure, with what a device has.

    python3 run.py                 all of it
    python3 run.py verify          one step of it; also build, latency, files

Exit codes are the project's: 0 done, 2 usage, 3 bad or damaged files, 4 not supported, 5 parity
failed, 6 latency gate failed, 7 a needed runtime is missing.
"""

from __future__ import annotations

import argparse
import math
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.ondevice.bundle.bundle_index import Index, read_index, require_files
from lora_export.ondevice.bundle.device_report import exit_code, make_report, render, write_report
from lora_export.ondevice.bundle.runtimes import RUNTIMES, BundledRecord, Runtime, open_runtime
from lora_export.ondevice.bundle.verify_and_measure import choose, measure, verify
from lora_export.ondevice.device_errors import (
    LoraExportError,
    MissingRuntimeError,
    StorageError,
    UsageError,
)
from lora_export.ondevice.file_opening import reason_of
from lora_export.ondevice.printable import printable_line

if TYPE_CHECKING:
    from lora_export.ondevice.bundle.verify_and_measure import LatencyCheck

__all__ = ["main"]

_ALL: Final = "all"
_BUILD: Final = "build"
_VERIFY: Final = "verify"
_LATENCY: Final = "latency"
_FILES: Final = "files"
_STEPS: Final = {
    _ALL: "build where TensorRT is, verify, measure (the default)",
    _BUILD: "build the engines, or compile ready ones for this GPU; needs TensorRT",
    _VERIFY: "compare every graph with its golden outputs",
    _LATENCY: "measure every adapter against the base",
    _FILES: "compare the files with the index, and no more",
}
_FEWEST_ROUNDS: Final = 10
_INTERRUPTED: Final = 130


def main(bundle_dir: Path, arguments: list[str] | None = None) -> int:
    """Run the entry point of the bundle in `bundle_dir`; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(bundle_dir, options)
    except LoraExportError as error:
        return _failed(error, options)
    except OSError as error:  # one that nobody has translated
        place = "" if error.filename is None else f" {str(error.filename)!r}"
        msg = f"cannot access{place or ' a file'}: {reason_of(error)}"
        hint = "Check the path, its permissions and the disk, then run again."
        return _failed(StorageError(msg, hint=hint), options)
    except KeyboardInterrupt:
        _say("interrupted; nothing half-written was left")
        return _INTERRUPTED


def _failed(error: LoraExportError, options: argparse.Namespace) -> int:
    """Print an error as one message; return its exit code."""
    if options.debug:
        traceback.print_exc()
    for line in f"error: {error}".split("\n"):
        _say(line)
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Check this bundle on the machine it lies on.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="steps:\n" + "\n".join(f"  {name:<8} {text}" for name, text in _STEPS.items()),
    )
    parser.add_argument("step", nargs="?", choices=list(_STEPS), default=_ALL, metavar="STEP")
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="The library of ready engines; else TensorRT where it is installed.",
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="An adapter, or base; repeatable. All by default.")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="Interleaved rounds of the latency.")
    parser.add_argument("--max-ratio", type=float, help="Largest adapter/base latency ratio.")
    parser.add_argument("--report", type=Path, metavar="FILE",
                        help="The JSON report; report.RUNTIME.json in the bundle.")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="Print the report, and nothing else.")
    parser.add_argument("--strict", action="store_true", help="Fail what is ambiguous too.")
    parser.add_argument("--debug", action="store_true", help="Show tracebacks.")
    return parser


def _run(bundle_dir: Path, options: argparse.Namespace) -> int:
    if options.rounds is not None and options.rounds < _FEWEST_ROUNDS:
        msg = f"--rounds {options.rounds} is too few for a confidence interval"
        raise UsageError(msg, hint=f"Use at least {_FEWEST_ROUNDS}.")
    ratio = options.max_ratio
    if ratio is not None and not (0 < ratio < math.inf):
        msg = f"--max-ratio {ratio} is not a positive number"
        raise UsageError(msg, hint="Give a number above 0, such as 1.05.")
    if options.report is not None and options.report.is_dir():
        msg = f"--report {str(options.report)!r} is a folder"
        raise UsageError(msg, hint="Name a file in it.")
    index = read_index(bundle_dir)
    names = choose(index, options.only)
    _say(f"{index.name}: {len(index.files)} files, {index.size_bytes / 1e6:.1f} MB, for "
         f"{index.contents.target}")  # fmt: skip
    require_files(bundle_dir, index, lambda _: None)
    if options.step == _FILES:
        _say("every file is what was packed")
        return 0
    runtime = open_runtime(options.runtime, bundle_dir, index, _say)
    described = runtime.describe()
    _say(described["says"])
    report = make_report(
        index,
        described,
        engines=_engines(index, runtime, names, options.step),
        parity=verify(bundle_dir, index, runtime, names, _say) if _wants(options, _VERIFY) else {},
        latency=_latency(bundle_dir, index, runtime, names, options),
    )
    write_report(options.report or bundle_dir / f"report.{runtime.label}.json", report)
    if options.json:
        write_report(Path("-"), report)
    else:
        for line in render(report):
            sys.stdout.write(f"{printable_line(line)}\n")
    return exit_code(report, strict=options.strict)


def _wants(options: argparse.Namespace, step: str) -> bool:
    return options.step in {_ALL, step}


def _engines(
    index: Index, runtime: Runtime, names: tuple[str, ...], step: str
) -> dict[str, BundledRecord]:
    """Build what the checks need, each engine once."""
    checks = index.contents.checks
    wanted = {*names, "base"} if step in {_ALL, _LATENCY} else set(names)
    stems = {
        stem: None for name in checks if name in wanted for stem in runtime.sources(checks[name])
    }
    found: dict[str, BundledRecord] = {}
    for stem in stems:
        record = runtime.build(stem, _say)
        if record is not None:
            found[stem] = record
    if step == _BUILD and not found:
        msg = "there is nothing to build: ONNX Runtime opens the graphs as they are"
        raise MissingRuntimeError(msg, hint="Engines are built where TensorRT is installed.")
    return found


def _latency(
    bundle_dir: Path,
    index: Index,
    runtime: Runtime,
    names: tuple[str, ...],
    options: argparse.Namespace,
) -> dict[str, LatencyCheck]:
    if not _wants(options, _LATENCY):
        return {}
    return measure(
        bundle_dir, index, runtime, names, _say, rounds=options.rounds, max_ratio=options.max_ratio
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{printable_line(text)}\n")
