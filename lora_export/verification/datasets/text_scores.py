"""ROUGE and BLEU of generated text, by the libraries that papers are scored with.

ROUGE-L is the F of the longest common subsequence (Lin 2004), the mean over examples, by
rouge-score; BLEU is that of the whole data set (Papineni et al. 2002), 0 to 100, by sacrebleu from
the sums of its statistics.
"""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import MissingRuntimeError, UsageError
from lora_export.core.installation import install_command

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["bleu_of_counts", "bleu_parts", "require_library", "require_words", "rouge_parts"]

Float64Array = npt.NDArray[np.float64]

_LIBRARIES: Final = {"rouge": ("rouge_score", "rouge-score"), "bleu": ("sacrebleu", "sacrebleu")}
_ORDER: Final = 4
_WORD: Final = re.compile(r"[a-z0-9]")


def require_library(metric: str | None) -> None:
    """Require what a metric is computed with.

    Raises:
        MissingRuntimeError: It is not installed.
    """
    module, package = _LIBRARIES.get(metric or "", ("", ""))
    if module and importlib.util.find_spec(module) is None:
        msg = f"the metric {metric} is computed by {package}, which is not installed"
        raise MissingRuntimeError(msg, hint=f"Install it {install_command('metrics')}")


def require_words(references: Sequence[Sequence[str]], source: str) -> None:
    """Require that ROUGE sees anything: its words are of Latin letters without accents and digits.

    Raises:
        UsageError: It would be 0 whatever is written.
    """
    if not any(_WORD.search(each.lower()) for own in references for each in own):
        msg = f"no target of {source!r} has a word that ROUGE reads: Latin letters and digits"
        raise UsageError(msg, hint="Choose --metric exact_match or bleu (verify.metric).")


def rouge_parts(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Float64Array:
    """Return the best ROUGE-L of each answer with one of its references, and 1: ``[n, 2]``."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    values = [
        max(scorer.score(each, answer)["rougeL"].fmeasure for each in own)
        for answer, own in zip(answers, references, strict=True)
    ]
    return np.stack([np.array(values, np.float64), np.ones(len(values))], axis=-1)


def bleu_parts(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Float64Array:
    """Return the n-grams that are right and there are, and both lengths: ``[n, 10]``."""
    scorer = _bleu()
    rows = []
    for answer, own in zip(answers, references, strict=True):
        found = scorer.sentence_score(answer, list(own))
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(rows, np.float64)


def bleu_of_counts(sums: Float64Array) -> Float64Array:
    """Return BLEU of summed counts, ``[..., 10]`` → ``[...]``."""
    from sacrebleu.metrics.bleu import BLEU

    def one(row: Float64Array) -> float:
        numbers = [round(value) for value in row]
        found = BLEU.compute_bleu(
            numbers[:_ORDER], numbers[_ORDER:-2], numbers[-2], numbers[-1], smooth_method="exp"
        )
        return float(found.score)

    return np.asarray(np.apply_along_axis(one, -1, sums), np.float64)


def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)  # of sentences: only their counts are used
