"""Task metrics against scikit-learn, scipy and seqeval; SQuAD's by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from seqeval.metrics.sequence_labeling import get_entities
from sklearn import metrics as sk

from lora_export.verification.datasets import scores
from lora_export.verification.datasets.labelled import CLASSES, TAGS

TAG_NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def classes(count):
    number = st.integers(0, count - 1)
    return st.lists(st.tuples(number, number), min_size=1, max_size=40)


@given(st.integers(2, 5).flatmap(lambda n: st.tuples(st.just(n), classes(n))))
def test_classes_are_scored_as_scikit_learn_does(drawn):
    count, pairs = drawn
    said, true = map(list, zip(*pairs, strict=True))
    names = [str(i) for i in range(count)]
    found = {
        name: float(metric.value(metric.parts(said, true, names).sum(0)))
        for name, metric in CLASSES.metrics.items()
    }
    kind = {"average": "binary"} if count == 2 else {"average": "macro"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant side
        expected = {
            "accuracy": sk.accuracy_score(true, said),
            "f1": sk.f1_score(true, said, zero_division=0, **kind),
            "matthews": sk.matthews_corrcoef(true, said),
        }
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [2, 4])
def test_no_answer_is_an_answer_that_is_never_right(count):
    """As scikit-learn has it when the missing answer is a label of its own."""
    true = [0, 1, 1, 0, 1, 0, 1, 1]
    said = [0, 1, None, 0, 0, None, 1, 1]
    names = [str(i) for i in range(count)]
    found = {
        name: float(metric.value(metric.parts(said, true, names).sum(0)))
        for name, metric in CLASSES.metrics.items()
    }
    coded = [count if each is None else each for each in said]
    assert found["accuracy"] == sk.accuracy_score(true, coded)
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(true, coded))
    of_each = sk.f1_score(true, coded, labels=[0, 1], average=None)
    assert found["f1"] == pytest.approx(of_each[1] if count == 2 else of_each.mean())


@given(
    st.lists(
        st.tuples(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32)), min_size=3, max_size=30
    )
)
def test_pearson_is_that_of_scipy(pairs):
    said, true = (np.array(each) for each in zip(*pairs, strict=True))
    found = float(scores.pearson_of_moments(scores.moments(said, true).sum(0)))
    if min(said.std(), true.std()) < 1e-2:
        assert abs(found) <= 1 + 1e-6
    else:
        assert found == pytest.approx(stats.pearsonr(said, true).statistic, abs=1e-6)


def test_pearson_of_answers_that_lie_close_together_and_far_from_the_labels():
    random = np.random.default_rng(0)
    true = random.uniform(0, 5, 40)
    said = 1e5 + 1e-3 * (true + random.standard_normal(40))
    found = float(scores.pearson_of_moments(scores.moments(said, true).sum(0)))
    assert found == pytest.approx(stats.pearsonr(said, true).statistic, abs=1e-6)


@given(st.lists(st.lists(st.sampled_from(TAG_NAMES), min_size=1, max_size=12), min_size=1))
def test_entities_are_those_of_seqeval(sentences):
    for tags in sentences:
        expected = {(kind, first, last + 1) for kind, first, last in get_entities(tags)}
        assert scores.entities(tags) == expected


def test_entity_f1_counts_whole_entities():
    index = {name: i for i, name in enumerate(TAG_NAMES)}
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]
    said = [["B-PER", "I-PER", "O", "O"], ["O", "B-LOC"]]
    coded = [[[index[t] for t in row] for row in side] for side in (said, true)]
    metric = TAGS.metrics["f1"]
    assert float(metric.value(metric.parts(*coded, TAG_NAMES).sum(0))) == 0.5


def test_a_tag_without_a_prefix_is_an_entity_of_its_own_name():
    assert scores.entities(["person", "person", "O", "person", "place"]) == {
        ("person", 0, 2), ("person", 3, 4), ("place", 4, 5),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [  # worked out by hand after the rules of SQuAD's evaluate-v1.1.py
        ("The Normans", ["Normans"], 1, 1),
        ("Norman  conquest!", ["the norman conquest"], 1, 1),
        ("in the 10th century", ["10th century", "tenth"], 0, 4 / 5),
        ("a b", ["b c d"], 0, 2 / 4),  # the article goes: b against b, c, d
        ("x x y", ["x y y"], 0, 4 / 6),
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", [""], 1, 0),  # no word in common, as f1_score of evaluate-v1.1.py has it
        ("!", ["?"], 1, 0),
        ("1,000", ["1000"], 1, 1),
    ],
)
def test_answers_are_scored_as_squad_does(answer, references, exact, f1):
    assert scores.best_exact(answer, references) == exact
    assert scores.best_f1(answer, references) == pytest.approx(f1)


def test_perplexity_is_over_all_tokens_together():
    sums = np.array([[3.0, 2.0], [1.0, 6.0]])
    assert float(scores.perplexity_of(sums.sum(0))) == pytest.approx(np.exp(0.5))
    np.testing.assert_allclose(scores.perplexity_of(sums), np.exp([1.5, 1 / 6]))
