"""Task metrics as sums over examples: pure NumPy, float64.

A metric is a row of numbers per example (its parts), and a function of their sum over a data set:

    accuracy      right, 1                                     right / count
    f1            by class: right, said, true                  of class 1 where there are two, else
                                                               the mean over classes that occur
    matthews      the same                                     R_K (Gorodkin 2004)
    pearson       1, x, y, x², y², xy                          r
    mean          a value, 1                                   exact match, F1 of words, ROUGE
    entities      right, said, true                            F1 as CoNLL 2003 counts it
    perplexity    −Σ log p, tokens                             exp(−Σ log p / Σ tokens)

Written so, a bootstrap over examples is one product of weights and parts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "best_exact",
    "best_f1",
    "class_parts",
    "entities",
    "entity_parts",
    "f1_of_classes",
    "f1_of_counts",
    "matthews_of_classes",
    "moments",
    "pearson_of_moments",
    "perplexity_of",
    "share",
]

Float64Array = npt.NDArray[np.float64]

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_TWO: Final = 2


def share(sums: Float64Array) -> Float64Array:
    """Return the first sum over the second, ``[..., 2]`` → ``[...]``; 0 over 0 is 0."""
    return _over(sums[..., 0], sums[..., 1])


def class_parts(
    predicted: Sequence[int | None], expected: Sequence[int], count: int
) -> Float64Array:
    """Return, by class, whether an example is right, said and true: ``[n, 3 · classes]``.

    Of an example without an answer (None), no class is said.
    """
    one_hot = np.vstack([np.eye(count), np.zeros(count)])
    said = one_hot[[count if each is None else each for each in predicted]]
    true = one_hot[np.asarray(expected, np.intp)]
    return np.concatenate([said * true, said, true], axis=-1)


def f1_of_classes(sums: Float64Array) -> Float64Array:
    """Return F1: of class 1 where there are two classes, else the mean over those that occur."""
    right, said, true = _by_class(sums)
    each = _over(2 * right, said + true)
    if each.shape[-1] == _TWO:
        return each[..., 1]
    return _over(each.sum(-1), np.asarray((said + true) > 0, np.float64).sum(-1))


def matthews_of_classes(sums: Float64Array) -> Float64Array:
    """Return Matthews' correlation for any number of classes; 0 where a side is constant.

    No answer is an answer of its own, which is never right.
    """
    right, said, true = _by_class(sums)
    n = true.sum(-1)
    none = n - said.sum(-1)
    above = right.sum(-1) * n - (said * true).sum(-1)
    below = (n**2 - (said**2).sum(-1) - none**2) * (n**2 - (true**2).sum(-1))
    return _over(above, np.sqrt(np.maximum(below, 0)))


def _by_class(sums: Float64Array) -> Float64Array:
    """Return right, said and true, ``[3, ..., classes]``."""
    return np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)


def moments(predicted: Sequence[float], expected: Sequence[float]) -> Float64Array:
    """Return ``1, x, y, x², y², xy`` of each example, ``[n, 6]``, each side about its own mean."""
    x, y = (np.asarray(each, np.float64) for each in (predicted, expected))
    x, y = (each - float(np.mean(each)) for each in (x, y))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def pearson_of_moments(sums: Float64Array) -> Float64Array:
    """Return Pearson's r; 0 where a side is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    return _over(n * xy - x * y, np.sqrt(spread))


def f1_of_counts(sums: Float64Array) -> Float64Array:
    """Return F1 of ``right, said, true``, ``[..., 3]`` → ``[...]``."""
    return _over(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def perplexity_of(sums: Float64Array) -> Float64Array:
    """Return ``exp(−Σ log p / tokens)``, ``[..., 2]`` → ``[...]``."""
    result: Float64Array = np.exp(_over(sums[..., 0], sums[..., 1]))
    return result


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of a sentence as (type, first, behind the last), as conlleval does.

    ``B-X`` begins one; ``I-X`` goes on, or begins one behind another type or none. A tag without a
    prefix is read as ``I-``.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    found: set[tuple[str, int, int]] = set()
    open_type, first = "", 0
    for at, tag in enumerate((*tags, "O")):
        prefix, dash, kind = tag.partition("-")
        if not dash or prefix not in {"B", "I"}:
            prefix, kind = "I", "" if tag == "O" else tag
        if open_type and (prefix == "B" or kind != open_type):
            found.add((open_type, first, at))
            open_type = ""
        if kind and not open_type:
            open_type, first = kind, at
    return found


def entity_parts(predicted: Sequence[str], expected: Sequence[str]) -> tuple[int, int, int]:
    """Return how many entities of a sentence are right, said and true."""
    said, true = entities(predicted), entities(expected)
    return len(said & true), len(said), len(true)


def best_exact(answer: str, references: Sequence[str]) -> float:
    """Return 1 where an answer is one of the references once normalised as SQuAD does it."""
    return float(any(_normal(answer) == _normal(each) for each in references))


def best_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of words with one of the references, as SQuAD 1.1 counts it.

    Where nothing is left of either (``the``), it is 0, though the match is exact.
    """
    return max(_word_f1(_normal(answer).split(), _normal(each).split()) for each in references)


def _word_f1(answer: list[str], reference: list[str]) -> float:
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def _normal(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _over(above: Any, below: Any) -> Float64Array:
    """Return a quotient; 0 where it has no value."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    result: Float64Array = np.zeros(above.shape)
    np.divide(above, below, out=result, where=below != 0)
    return result
