"""The counts of a run, the refusals by kind, and the faults in full."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tools.merge_fuzz.judge import FAULTS

if TYPE_CHECKING:
    from tools.merge_fuzz.judge import Outcome
    from tools.merge_fuzz.run import Result

__all__ = ["Summary", "describe", "traits"]

_EXAMPLES: Final = 4


@dataclass
class Summary:
    """The outcomes of the cases so far; `add` changes it.

    Attributes:
        kinds: How many cases had each kind of outcome.
        reasons: How many were refused or skipped for each reason.
        examples: A few cases of each reason.
        faults: The cases that are faults.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[tuple[Result, Outcome]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    faults: list[tuple[Result, Outcome]] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count a result: of the merged checkpoint, and of the graph where there is one."""
        for prefix, outcome in (("", result.outcome), ("graph ", result.graph)):
            if outcome is None:
                continue
            self.kinds[prefix + outcome.kind] += 1
            if outcome.kind in FAULTS:
                self.faults.append((result, outcome))
            elif outcome.detail:
                key = (prefix + outcome.kind, outcome.detail)
                self.reasons[key] += 1
                if len(self.examples[key]) < _EXAMPLES:
                    self.examples[key].append((result, outcome))

    def line(self) -> str:
        """Return the counts on one line."""
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        return counts or "nothing was run"

    def text(self, *, verbose: bool = False) -> str:
        """Return everything: counts, reasons with examples, faults."""
        lines = [self.line(), ""]
        for (kind, detail), count in self.reasons.most_common():
            lines.append(f"{count:5} {kind}: {detail}")
            if verbose:
                for each, outcome in self.examples[kind, detail]:
                    lines.append(f"        {name_of(each)} {traits(each)}")
                    lines.append(f"            {outcome.message[:400]}")
        lines += ["", f"{len(self.faults)} faults"]
        lines += [describe(*each) for each in self.faults]
        return "\n".join(lines)


def describe(result: Result, outcome: Outcome) -> str:
    """Return all that is known of a case."""
    drawn = result.case.text() if result.case else ""
    effect = f" (effect {outcome.effect:.2g})" if outcome.effect is not None else ""
    head = f"{outcome.kind} {name_of(result)} {outcome.detail}{effect}"
    return f"{head}\n  {outcome.message}\n  {drawn}"


def name_of(result: Result) -> str:
    """Return what `--case` takes."""
    return f"{result.seed}:{result.index}"


def traits(result: Result) -> str:
    """Return what is unusual about a case, in a few words."""
    case = result.case
    if case is None:
        return ""
    base, adapter = case.base, case.adapter
    words = [base.family, base.trained.removeprefix("AutoModel") or "Model"]
    words += [f"saved as {base.saved}"] if base.saved != base.trained else []
    words += [f"tied={base.tied}", base.names, *(f"without {key}" for key in base.edits)]
    words += [f"wrapper {case.wrapper}"] if case.wrapper else []
    words += [f"combined by {case.combine}"] if case.combine else []
    words += [f"graph {case.mode}"] if case.mode else []
    words += [f"grown by {adapter.grown}"] if adapter.grown else []
    plain = {"r", "lora_alpha", "task_type"}
    words += [f"{key}={value}" for key, value in adapter.settings.items() if key not in plain]
    return ", ".join(words)
