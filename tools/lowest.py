"""Constraints that hold pip to the lowest versions that pyproject.toml declares.

    python tools/lowest.py > lowest.txt
    pip install -c lowest.txt '.[export,cpu,triton]'

Test tools keep the versions of constraints.txt, and libraries that pyproject.toml does not name are
left to pip. With ``--torch pinned``, so does torch: the public index holds builds for CUDA of the
older ones, several gigabytes with all that they bring.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["constraints", "lowest_versions"]

ROOT: Final = Path(__file__).resolve().parent.parent
EXTRAS: Final = ("export", "cpu", "triton")
TEST_TOOLS: Final = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")

_BOUND: Final = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)")


def lowest_versions(root: Path = ROOT) -> dict[str, str]:
    """Return the lower bound of each dependency of the package and of `EXTRAS`.

    Raises:
        ValueError: A dependency has no lower bound.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    found: dict[str, str] = {}
    for requirement in (
        *project["dependencies"],
        *(row for each in EXTRAS for row in extras[each]),
    ):
        bound = _BOUND.match(requirement)
        if bound is None:
            msg = f"pyproject.toml: {requirement!r} has no lower bound"
            raise ValueError(msg)
        found[bound[1]] = bound[2]
    return found


def constraints(root: Path = ROOT, *, torch: str = "lowest") -> Iterator[str]:
    """Yield the lines of a constraints file.

    Args:
        root: The project's folder.
        torch: ``lowest``, or ``pinned`` for the version of constraints.txt.
    """
    kept = {*TEST_TOOLS, *(("torch",) if torch == "pinned" else ())}
    yield from (f"{n}=={v}" for n, v in lowest_versions(root).items() if n not in kept)
    for line in (root / "constraints.txt").read_text("utf-8").splitlines():
        if line.partition("==")[0] in kept and 'python_version < "3.11"' not in line:
            yield line


def main() -> None:
    """Print the constraints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--torch", choices=("lowest", "pinned"), default="lowest")
    print("\n".join(constraints(torch=parser.parse_args().torch)))


if __name__ == "__main__":
    main()
