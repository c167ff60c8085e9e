"""Data sets of labelled texts: parsed strictly, tokenized as the base does it."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.core.errors import InputError, UnsupportedError, UsageError
from lora_export.verification.datasets.dataset import load_dataset
from lora_export.weights.companion_files import companion_files
from tests.helpers.models import POSITIONS
from tests.verification.datasets.examples import INPUTS, LABELS, line, signature


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
    assert "--labels" not in (caught.value.hint or "")


def test_an_unknown_label_of_classes_without_names_says_how_to_name_them(load):
    with pytest.raises(InputError, match="unknown label 'go'") as caught:
        load(line("w3", "go"), labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert "LABEL_2. Name them with --labels" in (caught.value.hint or "")


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
