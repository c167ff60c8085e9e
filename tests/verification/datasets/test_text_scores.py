"""ROUGE and BLEU are the libraries' own; what is missing is named."""

from __future__ import annotations

import importlib.util

import pytest

from lora_export.core.errors import MissingRuntimeError
from lora_export.verification.datasets import text_scores
from lora_export.verification.datasets.scores import share

ANSWERS = ["the cat sat on the mat today", "a dog", "", "there is a cat on the mat"]
REFERENCES = [
    ["the cat sat on the mat"],
    ["the dog ran", "a dog ran off"],
    ["x"],
    ["a cat is on it"],
]


@pytest.mark.parametrize(
    ("answers", "references"),
    [
        (ANSWERS, REFERENCES),
        (["the cat sat down now"], [["the cat sat on it now"]]),  # no four words agree
    ],
)
def test_bleu_of_a_data_set_is_sacrebleus(answers, references):
    import sacrebleu

    longest = max(map(len, references))
    columns = [[row[i] if i < len(row) else None for row in references] for i in range(longest)]
    expected = sacrebleu.corpus_bleu(answers, columns).score
    sums = text_scores.bleu_parts(answers, references).sum(0)
    assert float(text_scores.bleu_of_counts(sums)) == pytest.approx(expected)
    assert expected > 5


def test_rouge_is_the_best_of_the_references():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    best = [
        scorer.score_multi(own, answer)["rougeL"].fmeasure
        for answer, own in zip(ANSWERS, REFERENCES, strict=True)
    ]
    parts = text_scores.rouge_parts(ANSWERS, REFERENCES)
    assert parts[:, 0].tolist() == pytest.approx(best)
    assert float(share(parts.sum(0))) == pytest.approx(sum(best) / 4)


@pytest.mark.parametrize(("metric", "package"), [("bleu", "sacrebleu"), ("rouge", "rouge-score")])
def test_a_missing_library_is_named_with_its_extra(metric, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRuntimeError, match=package) as caught:
        text_scores.require_library(metric)
    assert "pip install -e '.[metrics]'" in (caught.value.hint or "")
    text_scores.require_library("accuracy")
