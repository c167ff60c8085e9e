"""The modules that read files, and whether the fuzz reaches each of them.

`tools.opening` holds that files are opened for reading in one place. Whoever calls that place, or
a function that parses what it returns, is a reader: the valid inputs of the fuzz have to pass
through it, or `NOT_FUZZED` says why they need not.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.reader_fuzz.table import READERS

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["NOT_FUZZED", "reached_modules", "reading_modules"]

PACKAGE: Final = Path(__file__).parents[2] / "lora_export"
_READING: Final = frozenset({
    "open_file", "parse_json", "parse_yaml", "read_checkpoint_table", "read_file", "read_json",
    "read_table", "read_yaml",
})  # fmt: skip
"""Functions that return what a file holds."""

_OWN: Final = "it reads what this command has just written"
_HASHED: Final = "it compares bytes with a hash of the manifest and parses none itself"
_LIBRARY: Final = "the bytes go to a library of NVIDIA's as they are"

NOT_FUZZED: Final = {
    "bundle/packing.py": "it copies bytes",
    "cli/report.py": _OWN,
    "commands/fleet/adopt.py": "the reports of an artifact, compared with hashes when fetched",
    "engines/trtexec.py": "it copies bytes",
    "exports/integrity_checks.py": _HASHED,
    "exports/packs.py": _OWN,
    "exports/adapter_companions.py": "reader own-companions: the same table of the same file",
    "ondevice/trt/plan_opening.py": _LIBRARY,
    "ondevice/trt/timing_cache.py": _LIBRARY,
    "report/facts.py": f"{_HASHED}; readers report-…",
    "verification/record.py": f"{_HASHED}; readers report-…",
}
"""Readers that no input of the fuzz passes through, and why."""


def reading_modules() -> set[str]:
    """Return the modules that call a function which returns what a file holds."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(_reads(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    }


def _reads(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name in _READING


def reached_modules() -> set[str]:
    """Return the modules of which a function runs while the valid inputs are read."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    for reader in READERS.values():
        with tempfile.TemporaryDirectory() as place:
            fixed, folder = Path(place, "fixed"), Path(place, "input")
            fixed.mkdir()
            target = reader.prepare(fixed)
            for at, seed in enumerate(target.seeds):
                own = folder / str(at)
                own.mkdir(parents=True)
                for file, data in seed.items():
                    (own / file).write_bytes(data)
                sys.setprofile(note)
                try:
                    target.read(own)
                finally:
                    sys.setprofile(None)
    inside = (Path(file) for file in files if f"{PACKAGE}/" in file)
    return {path.relative_to(PACKAGE).as_posix() for path in inside}
