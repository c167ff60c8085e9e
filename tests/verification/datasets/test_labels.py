"""The names of a head's labels, and those made up where none are given."""

from __future__ import annotations

import pytest

from lora_export.verification.datasets.class_names import are_numbers, label_names

CONFIG = {"id2label": {"1": "yes", "0": "no", "10": "x", "2": "b", "3": "c", "4": "d", "5": "e",
                       "6": "f", "7": "g", "8": "h", "9": "i"}}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "base", "config", "width", "names"),
    [
        (["a", "b"], ["c", "d"], {}, 2, ("a", "b")),
        (None, ["c", "d"], {}, 2, ("c", "d")),
        ([], ["c", "d"], {}, 2, ("c", "d")),
        (None, ["c", "d"], {}, 3, ("LABEL_0", "LABEL_1", "LABEL_2")),
        (None, ["c", "d"], {"id2label": {0: "x", 1: "y", 2: "z"}}, 3, ("x", "y", "z")),
        (None, None, CONFIG, 11, ("no", "yes", "b", "c", "d", "e", "f", "g", "h", "i", "x")),
        (None, None, CONFIG, 2, ("LABEL_0", "LABEL_1")),
        (None, None, {"id2label": {"0": "a", "2": "b"}}, 2, ("LABEL_0", "LABEL_1")),
        (None, None, {"id2label": {"0": "a", "1": "a"}}, 2, ("LABEL_0", "LABEL_1")),
        (None, None, {"id2label": ["a", "b"]}, 2, ("LABEL_0", "LABEL_1")),
        (None, None, {}, None, ()),
        (None, ["c", "d"], {}, None, ("c", "d")),
    ],
)
def test_names_are_those_given_else_the_bases_else_numbers(own, base, config, width, names):
    assert label_names(own, base, config, width) == names


def test_what_transformers_makes_up_is_no_name():
    assert are_numbers(["LABEL_0", "LABEL_12"])
    assert are_numbers([])
    assert not are_numbers(["LABEL_0", "B-PER"])
