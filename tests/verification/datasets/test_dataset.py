"""Data sets: parsed strictly, tokenized as the base does it, scored example by example."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lora_export.core.errors import InputError, UnsupportedError, UsageError
from lora_export.core.reports.report_model import as_json
from lora_export.graph.spec.signature import Input, Output, Signature
from lora_export.verification.datasets.dataset import (
    Dataset,
    load_dataset,
    predict,
    require_metric,
    score,
)
from lora_export.verification.datasets.kind import Examples, Reading
from lora_export.verification.datasets.labelled import CLASSES
from lora_export.verification.datasets.language import TEXTS
from lora_export.verification.datasets.questions import Answers, RecomputingModel
from lora_export.weights.companion_files import companion_files
from tests.helpers.models import POSITIONS, save_tiny_tokenizer

LABELS = ("stop", "go", "wait")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def signature(*names):
    inputs = tuple(Input(name, "int64", ("batch", "sequence")) for name in names)
    return Signature(inputs, (Output("logits", ("batch",)),))


@pytest.fixture
def load(tokenizer, tmp_path):
    def run(
        text: str | bytes, labels=LABELS, inputs=INPUTS, folder=tokenizer, padding=None, **more
    ):
        path = tmp_path / "data.jsonl"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        settings = {"task": "text-classification", "metric": None, **more}
        config = {"max_position_embeddings": POSITIONS}
        if padding is not None:
            config["pad_token_id"] = padding
        return load_dataset(
            path, companions=companion_files(folder), labels=labels, signature=signature(*inputs),
            config=config, **settings,
        )  # fmt: skip

    return run


def line(text: object, label: object, **more: object) -> str:
    return json.dumps({"text": text, "label": label, **more}, ensure_ascii=False) + "\n"


def test_labels_by_name_and_by_index(load):
    found = load(line("w3 w4", "go") + line("w5", 2) + line("w6", "stop", note="kept out"))
    assert found.examples.expected == [1, 2, 0]
    assert list(found.examples.texts) == ["w3 w4", "w5", "w6"]
    (batch,) = found.examples.batches
    assert list(batch) == list(INPUTS)
    np.testing.assert_array_equal(batch["input_ids"], [[3, 4], [5, 0], [6, 0]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1], [1, 0], [1, 0]])
    assert batch["input_ids"].dtype == np.int64


def test_padding_is_the_models_own_token(load):
    (batch,) = load(line("w3 w4", "go") + line("w5", 2), padding=7).examples.batches
    np.testing.assert_array_equal(batch["input_ids"], [[3, 4], [5, 7]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1], [1, 0]])


def test_only_the_inputs_of_the_graph_are_made(load):
    (batch,) = load(line("w3", "go"), inputs=["attention_mask", "input_ids"]).examples.batches
    assert list(batch) == ["attention_mask", "input_ids"]


def test_batches_are_padded_each_to_its_own_longest(load):
    text = "".join(line(" ".join(["w9"] * (1 + i)), "go") for i in range(70))
    shapes = [batch["input_ids"].shape for batch in load(text).examples.batches]
    assert shapes == [(32, 32), (32, 64), (6, 70)]


def test_blank_lines_are_left_out_and_counted(load):
    assert len(load("\n" + line("w3", "go") + "\n  \n" + line("w4", 0)).examples.texts) == 2
    with pytest.raises(InputError, match=r"line 3 of.*unknown label 'fly'"):
        load("\n" + line("w3", "go") + line("w4", "fly"))


def test_line_separators_inside_a_text_are_part_of_it(load):
    # JSON allows U+2028, U+0085 and the like in strings: only \n ends a line of JSONL.
    texts = ["w3\u2028w4", "w5\x85w6", "w7\u2029"]
    found = load("".join(line(text, "go") for text in texts))
    assert list(found.examples.texts) == texts


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_data_set_is_refused(text, load):
    with pytest.raises(InputError, match="has no examples"):
        load(text)


@pytest.mark.parametrize(
    "bad",
    ["[]", "3", "null", '"text"', '{"text": "x"}', '{"label": "go"}', '{"text": 3, "label": "go"}',
     '{"text": null, "label": "go"}', '{"text": ["x"], "label": "go"}'],
)  # fmt: skip
def test_a_line_that_is_no_example_is_named_by_its_number(bad, load):
    with pytest.raises(InputError, match=r"line 2 of") as caught:
        load(line("w3", "go") + bad + "\n")
    assert "text" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "bad", ["{", "not json", '{"text": "x", "label": "go"', b"\xff\xfe", "[" * 200_000]
)
def test_what_is_not_json_is_refused(bad, load):
    with pytest.raises(InputError, match="not JSON"):
        load(bad)


@pytest.mark.parametrize(
    "bad", ['{"text": "x" "label": 0}', "{'text': 0}", "nonsense", '{"label": 1' + "0" * 5000 + "}"]
)
def test_a_line_that_is_not_json_is_named_by_its_number(bad, load):
    with pytest.raises(InputError, match=r"line 3 of the data set .* is not JSON") as caught:
        load(line("w3", "go") + "\n" + bad + "\n" + line("w3", "go"))
    assert "line 1" not in caught.value.message


def test_a_mark_of_the_byte_order_and_windows_line_ends_are_no_part_of_it(load):
    text = (line("w3", "go") + line("w4", 0)).replace("\n", "\r\n")
    assert load("\ufeff" + text).examples.expected == [1, 0]


@pytest.mark.parametrize("text", ["w3 \\ud83d", "\\udc00", "w3 \\uDE00 w4"])
def test_half_of_a_character_is_named_by_its_line(text, load):
    with pytest.raises(InputError, match=r"line 2 of .* half of a character"):
        load(line("w3", "go") + '{"text": "' + text + '", "label": 0}')


def test_both_halves_are_a_character(load):
    assert load('{"text": "w3 \\ud83d\\ude00", "label": 0}').examples.texts == ["w3 \U0001f600"]


def test_a_text_of_which_the_tokenizer_leaves_nothing_is_named_by_its_line(load):
    with pytest.raises(InputError, match=r"line 2 of .* without tokens"):
        load(line("w3", "go") + line("", "go"))


@pytest.mark.parametrize("label", ["fly", "GO", "", -1, 3, 1.0, True, None, ["go"], {"a": 1}])
def test_an_unknown_label_is_named_with_the_known_ones(label, load):
    with pytest.raises(InputError, match=r"line 1 of.*unknown label") as caught:
        load(line("w3", label))
    assert repr(label) in caught.value.message
    assert "stop, go, wait" in (caught.value.hint or "")


def test_without_names_of_labels_it_is_a_usage_error(load):
    with pytest.raises(UsageError, match="names of the labels"):
        load(line("w3", "go"), labels=())


def test_a_missing_file_is_named(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"gone\.jsonl.*No such file"):
        load_dataset(
            tmp_path / "gone.jsonl", task="text-classification", metric=None,
            companions=companion_files(tokenizer), labels=LABELS,
            signature=signature(*INPUTS), config={},
        )  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_a_tokenizer_that_is_missing_or_damaged_is_named(content, load, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load(line("w3", "go"), folder=tmp_path)


def test_an_input_that_text_cannot_fill_is_refused(load):
    with pytest.raises(UnsupportedError, match="'bbox'"):
        load(line("w3", "go"), inputs=["input_ids", "bbox"])


def test_a_text_longer_than_the_model_is_cut_and_counted(load):
    found = load(line(" ".join(["w9"] * 500), "go") + line("w3", "go"))
    assert found.examples.cut == 1
    assert found.examples.batches[0]["input_ids"].shape[1] <= POSITIONS


@pytest.mark.parametrize(
    ("task", "metric", "says"),
    [
        ("text-classification", "rouge", "accuracy, f1, matthews"),
        ("token-classification", "matthews", "f1, accuracy"),
        ("question-answering", "accuracy", "f1, exact_match"),
        ("text-generation", "pearson", "perplexity, rouge, bleu, exact_match"),
        ("fill-mask", None, "Leave verify.dataset"),
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
        with pytest.raises(InputError, match=r"line 1 of.*, no number"):
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


# --------------------------------------------------------------------------- predict and score


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
