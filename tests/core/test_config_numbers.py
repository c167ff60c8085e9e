"""Numbers of a config are whole, or named with the setting."""

from __future__ import annotations

import pytest

from lora_export.core.config_numbers import text_settings, whole_number
from lora_export.core.errors import CheckpointError
from lora_export.weights.positions import long_rope_threshold, longest_text


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1, 1.5, "x", [1], {"a": 1}, 10**400]
)
def test_what_counts_nothing_is_refused_by_name(value):
    with pytest.raises(CheckpointError, match="'n_positions' is") as caught:
        whole_number({"n_positions": value}, "n_positions")
    assert len(caught.value.message) < 200
    with pytest.raises(CheckpointError, match="'n_positions'"):
        longest_text({"n_positions": value})
    with pytest.raises(CheckpointError, match="'max_position_embeddings'"):
        long_rope_threshold({"max_position_embeddings": value, "rope_parameters": {"a": 1}})


@pytest.mark.parametrize(("value", "found"), [(None, 7), (0, 7), (512, 512), (512.0, 512)])
def test_numbers_are_taken(value, found):
    assert whole_number({"n_positions": value}, "n_positions", 7) == found


def test_the_settings_of_a_tower_come_first():
    assert text_settings({"a": 1, "text_config": {"a": 2}})["a"] == 2
    assert text_settings({"a": 1, "text_config": "x"})["a"] == 1
