"""Results of the cases, as text and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.bad_file_matrix.run import Result

__all__ = ["Summary", "describe"]

_EXAMPLES: Final = 3


class Summary:
    """Counts of what was seen, and every fault."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.codes: Counter[int] = Counter()
        self.faults: list[Result] = []
        self.slowest: Result | None = None

    @property
    def count(self) -> int:
        """Counts of the cases."""
        return sum(self.codes.values())

    def add(self, result: Result) -> None:
        """Count a result."""
        self.codes[result.code] += 1
        if result.faults:
            self.faults.append(result)
        if self.slowest is None or result.seconds > self.slowest.seconds:
            self.slowest = result

    def line(self) -> str:
        """Return the counts in a line."""
        codes = ", ".join(f"{count} × exit {code}" for code, count in sorted(self.codes.items()))
        return f"{self.count} cases: {codes}; {len(self.faults)} with faults"

    def text(self) -> str:
        """Return the counts and the faults, grouped by command, fault and kind, most first."""
        return "\n".join([*self._groups(), self.line()])

    def as_json(self, seconds: float) -> dict[str, Any]:
        """Return the counts and the faults as JSON."""
        return {
            "cases": self.count,
            "seconds": round(seconds, 1),
            "codes": {str(code): count for code, count in sorted(self.codes.items())},
            "slowest_seconds": self.slowest.seconds if self.slowest else None,
            "slowest": str(self.slowest.case) if self.slowest else None,
            "faults": [
                {"case": str(each.case), "code": each.code, "seconds": each.seconds,
                 "faults": list(each.faults), "message": each.message}
                for each in self.faults
            ],
        }  # fmt: skip

    def _groups(self) -> Iterator[str]:
        groups: defaultdict[tuple[str, str], list[Result]] = defaultdict(list)
        for result in self.faults:
            for fault in result.faults:
                groups[fault, _last_line(result)].append(result)
        for (fault, message), results in sorted(groups.items(), key=lambda row: -len(row[1])):
            yield f"{len(results)} × {fault}: {message}"
            yield from (f"    --case '{each.case}'" for each in results[:_EXAMPLES])


def describe(result: Result) -> str:
    """Return a result with what was printed."""
    head = f"{result.case}: exit {result.code}, {result.seconds:.2f} s"
    return "\n".join([head, *(f"  FAULT {each}" for each in result.faults), result.message,
                      result.stack])  # fmt: skip


def _last_line(result: Result) -> str:
    """Return the line of the message that differs least between equal faults."""
    lines = [line for line in result.message.splitlines() if line.strip()] or [""]
    named = [line for line in lines if line.startswith("error: ")] or lines[-1:]
    return named[0].replace(result.case.path or "\0", "PATH")[:160]
