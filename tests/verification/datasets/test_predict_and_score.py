"""Answers from logits, and their scores example by example."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lora_export.core.reports.report_model import as_json
from lora_export.verification.datasets.dataset import Dataset, predict, score
from lora_export.verification.datasets.kind import Examples, Reading
from lora_export.verification.datasets.labelled import CLASSES
from lora_export.verification.datasets.language import TEXTS
from lora_export.verification.datasets.questions import Answers, RecomputingModel
from tests.verification.datasets.examples import LABELS, signature


def dataset(*labels: int) -> Dataset:
    batches = [{"x": np.array([[index]])} for index in range(len(labels))]
    texts = [f"text {i}" for i in range(len(labels))]
    reading = Reading(None, None, LABELS, signature("x"), 0, 8, False, ({}, {}), 8)  # type: ignore[arg-type]
    return Dataset(CLASSES, "accuracy", reading, Examples(texts, list(labels), batches))


def test_predictions_are_the_largest_logit_and_its_margin():
    logits = np.array([[1.0, 3.0, 2.0], [5.0, -5.0, 0.0]], np.float32)
    found = predict(dataset(0, 0), RecomputingModel(lambda feeds: logits[feeds["x"][0]], ("x",)))
    assert found.values == [1, 0]
    sizes = np.sqrt((logits.astype(np.float64) ** 2).mean(-1))
    np.testing.assert_allclose(found.margins, [1.0 / sizes[0], 5.0 / sizes[1]], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_no_answer(bad, load):
    """`argmax` of them is the first: without this, a broken row counts as class 0."""
    logits = np.array([[bad, 1.0, 2.0], [9.0, 1.0, 2.0]])
    found = predict(dataset(0, 0), RecomputingModel(lambda feeds: logits[feeds["x"][0]], ("x",)))
    assert found.values == [None, 0]
    good = predict(dataset(0, 0), RecomputingModel(lambda feeds: logits[[1]], ("x",)))
    row, differing = score(dataset(0, 0), found, good, tolerance=1e-5)
    assert (row.graph, row.reference) == (0.5, 1.0)
    assert row.clear_disagreements == 1
    assert differing[0].graph is None
    json.dumps([as_json(each) for each in (row, *differing)], allow_nan=False)


def test_words_and_spans_of_broken_logits_are_no_answers(load):
    tags = load(json.dumps({"tokens": ["w3", "w4"], "tags": ["stop", "go"]}),
                task="token-classification")  # fmt: skip
    logits = np.array([[[9.0, 0, 0], [np.nan, 9.0, 0]]])
    found = predict(tags, RecomputingModel(lambda feeds: logits, ()))
    assert found.values == [[0, None]]
    for metric in tags.kind.metrics.values():
        parts = metric.parts(found.values, tags.examples.expected, LABELS)
        assert np.isfinite(parts).all()
    row = {"question": "w9", "context": "w3 w4", "answers": ["w3"]}
    spans = load(json.dumps(row), task="question-answering")
    shape = (1, len(spans.examples.notes[0][1].ids), 2)
    said = predict(spans, RecomputingModel(lambda feeds: np.full(shape, np.nan), ()))
    assert said.values == [None]
    reference = predict(spans, RecomputingModel(lambda feeds: np.ones(shape), ()))
    scored, _ = score(spans, said, reference, tolerance=1e-5)
    assert (scored.graph, scored.disagreements) == (0.0, 1)


def answers(*classes: int, margins=None) -> Answers:
    return Answers(list(classes), np.array(margins or [1.0] * len(classes), dtype=np.float64))


def test_scores_are_accuracies_and_every_difference_is_listed():
    found, differing = score(
        dataset(0, 1, 2, 0),
        graph=answers(0, 1, 0, 1),
        reference=answers(0, 1, 2, 2, margins=[1, 1, 0.5, 1e-6]),
        base=answers(1, 1, 1, 1),
        tolerance=1e-5,
    )
    assert (found.graph, found.reference, found.base) == (0.5, 0.75, 0.25)
    assert found.count == 4
    assert (found.disagreements, found.clear_disagreements) == (2, 1)
    assert as_json(found.mcnemar) == {"only_graph": 0, "only_reference": 1, "p_value": 1.0}
    assert [row.text for row in differing] == ["text 2", "text 3"]
    assert as_json(differing[0]) == {
        "example": 2, "text": "text 2", "label": 2, "graph": 0, "reference": 2,
        "reference_margin": 0.5,
    }  # fmt: skip
    json.dumps(as_json(found), allow_nan=False)


def test_the_row_holds_the_first_differences_and_the_list_all():
    many = 60
    found, differing = score(
        dataset(*[0] * many), answers(*[1] * many), answers(*[0] * many), tolerance=1e-5
    )
    assert (found.disagreements, found.differing_shown) == (many, len(found.differing))
    assert len(differing) == many > len(found.differing)
    assert found.verdict == "fail"
    assert found.mcnemar.p_value < 1e-15


@pytest.mark.parametrize("tolerance", [1e-5, 5e-3])
@pytest.mark.parametrize(("errors", "clear"), [(9.9, 0), (10.1, 1)])
def test_a_near_tie_is_a_margin_of_ten_tolerated_errors(tolerance, errors, clear):
    reference = answers(0, margins=[errors * tolerance])
    found, _ = score(dataset(0), answers(1), reference, tolerance=tolerance)
    assert (found.disagreements, found.clear_disagreements) == (1, clear)


def test_a_score_that_is_not_finite_fails_and_is_null():
    reading = dataset(0).reading
    texts = Dataset(TEXTS, "perplexity", reading, Examples(["a", "b"], [None] * 2, []))
    found, differing = score(
        texts, Answers([[math.nan, 3.0], [2.0, 2.0]]), Answers([[3.0, 3.0], [2.0, 2.0]]),
        tolerance=1e-5,
    )  # fmt: skip
    assert (found.graph, found.reference) == (None, pytest.approx(math.e))
    assert (found.verdict, found.difference) == ("fail", None)
    assert [each.example for each in differing] == [0]
    json.dumps([as_json(each) for each in (found, *differing)], allow_nan=False)


def test_equal_predictions_disagree_nowhere_though_both_may_be_wrong():
    found, _ = score(dataset(0, 1), answers(1, 0), answers(1, 0), tolerance=1e-5)
    assert (found.graph, found.disagreements, found.differing) == (0.0, 0, [])
    assert (found.verdict, found.difference_interval) == ("pass", (0.0, 0.0))
