"""Data sets of tags, questions, numbers and texts, and the metric that each has."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lora_export.core.errors import InputError, UsageError
from lora_export.verification.datasets.dataset import predict, require_metric
from lora_export.verification.datasets.questions import RecomputingModel
from tests.verification.datasets.examples import line


@pytest.mark.parametrize(
    ("task", "metric", "says"),
    [
        ("text-classification", "rouge", "accuracy, f1, matthews"),
        ("token-classification", "matthews", "f1, accuracy"),
        ("question-answering", "accuracy", "f1, exact_match"),
        ("text-generation", "pearson", "perplexity, rouge, bleu, exact_match"),
        ("fill-mask", None, "Leave it out; it is for"),
    ],
)
def test_a_metric_that_a_task_has_not_is_refused_with_those_it_has(task, metric, says):
    with pytest.raises(UsageError) as caught:
        require_metric(task, metric)
    assert says in (caught.value.hint or "")


def test_the_width_of_the_head_decides_between_classes_and_numbers(load):
    found = load(line("w3", 2.5) + line("w4", -1), width=1, labels=())
    assert (found.metric, found.examples.expected) == ("pearson", [2.5, -1.0])
    with pytest.raises(UsageError, match="with one output"):
        load(line("w3", 2.5), width=1, metric="accuracy")
    for label in ("go", None, True, [1], float("inf"), float("nan"), 10**400):
        with pytest.raises(InputError, match=r"line 1 of.*(no|not a) number"):
            load(line("w3", label), width=1)
    for rows in (line("w3", 2), line("w3", 2) + line("w4", 2.0)):
        with pytest.raises(InputError, match=r"every label of .* is 2"):
            load(rows, width=1)


def test_tags_are_asked_of_the_first_piece_of_each_word(load):
    row = {"tokens": ["w3", "w4", "w5"], "tags": ["stop", "go", 2]}
    found = load(json.dumps(row), task="token-classification")
    assert (found.metric, found.examples.expected) == ("f1", [[0, 1, 2]])
    (notes,) = found.examples.notes
    ids = found.examples.batches[0]["input_ids"][0]
    assert [int(ids[at]) for at in notes] == [3, 4, 5]


def test_f1_of_tags_that_nobody_named_is_refused(load):
    row = json.dumps({"tokens": ["w3", "w4"], "tags": [0, 1]})
    numbered = {"task": "token-classification", "labels": ["LABEL_0", "LABEL_1"]}
    with pytest.raises(UsageError, match="names of the tags") as caught:
        load(row, **numbered)
    assert "--labels" in (caught.value.hint or "")
    assert "--metric accuracy" in (caught.value.hint or "")
    assert load(row, metric="accuracy", **numbered).examples.expected == [[0, 1]]


@pytest.mark.parametrize("split", [False, True])
def test_words_of_byte_level_bpe_have_their_space(load, tmp_path, split):
    """As with transformers' ``add_prefix_space``: the pieces are those of the sentence."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    own = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    pattern = tokenizers.Regex(r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
    own.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), level])
        if split
        else level
    )
    words = ["Anna", "lives", "in", "New", "York's", "north"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    own.train_from_iterator([" " + " ".join(words)] * 20, trainer)
    own.save(str(tmp_path / "tokenizer.json"))
    row = {"tokens": words, "tags": ["go"] * len(words)}
    found = load(json.dumps(row), task="token-classification", folder=tmp_path)
    ids = found.examples.batches[0]["input_ids"][0].tolist()
    assert ids == own.encode(" " + " ".join(words)).ids
    assert len(found.examples.notes[0]) == len(words)


def test_a_question_that_leaves_no_room_is_named_by_its_line(load):
    rows = [{"question": "w9", "context": "w3 w4", "answers": ["w4"]},
            {"question": " ".join(["w9"] * 500), "context": "w3", "answers": ["w3"]}]  # fmt: skip
    with pytest.raises(InputError, match=r"line 2 of .*question that leaves no room"):
        load("\n".join(map(json.dumps, rows)), task="question-answering")


@pytest.mark.parametrize("metric", ["rouge", None])
def test_rouge_of_targets_that_it_cannot_read_is_refused(load, metric):
    """It would be 0 for every model, and all of them as good."""
    rows = [json.dumps({"prompt": "w3", "target": text}) for text in ("東京", "…", "москва")]
    seq2seq = {"task": "text2text-generation", "metric": metric}
    with pytest.raises(UsageError, match="Latin letters and digits") as caught:
        load("\n".join(rows), **seq2seq)
    assert "exact_match" in (caught.value.hint or "")
    assert load("\n".join(rows), task="text2text-generation", metric="exact_match")
    assert load("\n".join([*rows, json.dumps({"prompt": "w3", "target": "W4"})]), **seq2seq)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("token-classification", {"tokens": ["w3"], "tags": ["go", "go"]}),
        ("token-classification", {"tokens": [], "tags": []}),
        ("token-classification", {"tokens": "w3", "tags": ["go"]}),
        ("question-answering", {"question": "w3", "context": "w4", "answers": []}),
        ("question-answering", {"question": "w3", "answers": ["w4"]}),
        ("question-answering", {"question": "w3", "context": "w4", "answers": 3}),
        ("text-generation", {"prompt": "w3 w4"}),
        ("text-generation", {"text": "w3"}),
        ("text2text-generation", {"prompt": "w3", "target": [1]}),
    ],
)
def test_an_example_of_another_kind_is_named_by_its_line(task, row, load):
    with pytest.raises(InputError, match="line 1 of"):
        load(json.dumps(row), task=task)


def test_a_span_is_the_likeliest_of_the_context(load):
    row = {"question": "w9 w8", "context": "w3  w4 w5", "answers": {"text": ["w4 w5"]}}
    found = load(json.dumps(row), task="question-answering")
    context, encoding = found.examples.notes[0]
    logits = np.zeros((1, len(encoding.ids), 2))
    first, *_, last = [at for at, part in enumerate(encoding.sequence_ids) if part == 1]
    logits[0, first + 1, 0], logits[0, last, 1] = 3, 2
    logits[0, 0] = 50  # the question answers nothing
    logits[0, first, 1] = 9  # an end before the start
    logits[0, last, 0] = 2.5
    answers = predict(found, RecomputingModel(lambda feeds: logits, ()))
    oracle = {
        (start, end): logits[0, start, 0] + logits[0, end, 1]
        for start in range(first, last + 1)
        for end in range(start, last + 1)
    }
    start, end = max(oracle, key=oracle.__getitem__)
    assert answers.values == [context[encoding.offsets[start][0] : encoding.offsets[end][1]]]
    assert answers.values[0] in context
