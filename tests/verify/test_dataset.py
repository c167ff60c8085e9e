"""Data sets: parsed strictly, tokenized as the base does it, scored example by example."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lora_export.base.errors import InputError, UsageError
from lora_export.verify.dataset import Dataset, Predictions, load_dataset, predict, score
from tests.helpers.models import save_tiny_tokenizer

LABELS = ("stop", "go", "wait")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def load(tokenizer, tmp_path):
    def run(text: str | bytes, labels=LABELS, inputs=INPUTS, folder=tokenizer, padding=None):
        path = tmp_path / "data.jsonl"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_dataset(
            path, tokenizer_folder=folder, labels=labels, inputs=inputs, padding=padding
        )

    return run


def line(text: object, label: object, **more: object) -> str:
    return json.dumps({"text": text, "label": label, **more}, ensure_ascii=False) + "\n"


def test_labels_by_name_and_by_index(load):
    found = load(line("w3 w4", "go") + line("w5", 2) + line("w6", "stop", note="kept out"))
    assert found.labels.tolist() == [1, 2, 0]
    assert list(found.texts) == ["w3 w4", "w5", "w6"]
    (batch,) = found.batches
    assert list(batch) == list(INPUTS)
    np.testing.assert_array_equal(batch["input_ids"], [[3, 4], [5, 0], [6, 0]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1], [1, 0], [1, 0]])
    assert batch["input_ids"].dtype == np.int64


def test_padding_is_the_models_own_token(load):
    (batch,) = load(line("w3 w4", "go") + line("w5", 2), padding=7).batches
    np.testing.assert_array_equal(batch["input_ids"], [[3, 4], [5, 7]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1], [1, 0]])


def test_only_the_inputs_of_the_graph_are_made(load):
    (batch,) = load(line("w3", "go"), inputs=["attention_mask", "input_ids"]).batches
    assert list(batch) == ["attention_mask", "input_ids"]


def test_batches_are_padded_each_to_its_own_longest(load):
    text = "".join(line(" ".join(["w9"] * (1 + i)), "go") for i in range(70))
    shapes = [batch["input_ids"].shape for batch in load(text).batches]
    assert shapes == [(32, 32), (32, 64), (6, 70)]


def test_blank_lines_are_left_out_and_counted(load):
    assert len(load("\n" + line("w3", "go") + "\n  \n" + line("w4", 0)).texts) == 2
    with pytest.raises(InputError, match=r"line 3 of.*unknown label 'fly'"):
        load("\n" + line("w3", "go") + line("w4", "fly"))


def test_line_separators_inside_a_text_are_part_of_it(load):
    # JSON allows U+2028, U+0085 and the like in strings: only \n ends a line of JSONL.
    texts = ["w3\u2028w4", "w5\x85w6", "w7\u2029"]
    found = load("".join(line(text, "go") for text in texts))
    assert list(found.texts) == texts


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_data_set_is_refused(text, load):
    with pytest.raises(InputError, match="has no text and label"):
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
            tmp_path / "gone.jsonl",
            tokenizer_folder=tokenizer,
            labels=LABELS,
            inputs=INPUTS,
            padding=None,
        )


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_a_tokenizer_that_is_missing_or_damaged_is_named(content, load, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load(line("w3", "go"), folder=tmp_path)


def test_an_input_that_text_cannot_fill_is_refused(load):
    with pytest.raises(InputError, match="'position_ids'"):
        load(line("w3", "go"), inputs=["input_ids", "position_ids"])


# --------------------------------------------------------------------------- predict and score


def dataset(*labels: int) -> Dataset:
    batches = [{"x": np.array([[index]])} for index in range(len(labels))]
    return Dataset(batches, np.array(labels), [f"text {i}" for i in range(len(labels))])


def test_predictions_are_the_largest_logit_and_its_margin():
    logits = np.array([[1.0, 3.0, 2.0], [5.0, -5.0, 0.0]], np.float32)
    found = predict(dataset(0, 0), lambda feeds: logits[feeds["x"][0]])
    assert found.classes.tolist() == [1, 0]
    sizes = np.sqrt((logits.astype(np.float64) ** 2).mean(-1))
    np.testing.assert_allclose(found.margins, [1.0 / sizes[0], 5.0 / sizes[1]], rtol=1e-12)


def predictions(*classes: int, margins=None) -> Predictions:
    return Predictions(
        np.array(classes), np.array(margins or [1.0] * len(classes), dtype=np.float64)
    )


def test_scores_are_accuracies_and_every_difference_is_listed():
    found = score(
        dataset(0, 1, 2, 0),
        graph=predictions(0, 1, 0, 1),
        reference=predictions(0, 1, 2, 2, margins=[1, 1, 0.5, 1e-6]),
        tolerance=1e-5,
    )
    assert found["graph"] == 0.5
    assert found["reference"] == 0.75
    assert found["count"] == 4
    assert (found["disagreements"], found["clear_disagreements"]) == (2, 1)
    assert [row["text"] for row in found["differing"]] == ["text 2", "text 3"]
    assert found["differing"][0] == {
        "text": "text 2", "label": 2, "graph": 0, "reference": 2, "reference_margin": 0.5,
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("tolerance", [1e-5, 5e-3])
@pytest.mark.parametrize(("errors", "clear"), [(9.9, 0), (10.1, 1)])
def test_a_near_tie_is_a_margin_of_ten_tolerated_errors(tolerance, errors, clear):
    reference = predictions(0, margins=[errors * tolerance])
    found = score(dataset(0), predictions(1), reference, tolerance=tolerance)
    assert (found["disagreements"], found["clear_disagreements"]) == (1, clear)


def test_equal_predictions_disagree_nowhere_though_both_may_be_wrong():
    found = score(dataset(0, 1), predictions(1, 0), predictions(1, 0), tolerance=1e-5)
    assert (found["graph"], found["disagreements"], found["differing"]) == (0.0, 0, [])
