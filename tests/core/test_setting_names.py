"""Settings in messages: flags on the command line, keys with a recipe."""

from __future__ import annotations

import pytest

from lora_export.core.errors import UsageError
from lora_export.core.setting_names import naming_keys, with_flags, with_keys


@pytest.mark.parametrize(
    ("text", "flags", "keys"),
    [
        (
            "--metric (verify.metric) needs --dataset (verify.dataset)",
            "--metric needs --dataset",
            "verify.metric needs verify.dataset",
        ),
        ("leave --no-cache (cache) out", "leave --no-cache out", "leave cache out"),
        ("narrow the ranges (--profile)", "narrow the ranges (--profile)", None),
        ("'--x (y)' is not a file", "'--x (y)' is not a file", None),
    ],
)
def test_each_reader_sees_the_name_that_was_written(text, flags, keys):
    assert with_flags(text) == flags
    assert with_keys(text) == (keys or flags)


def test_errors_of_a_recipe_name_its_keys():
    error = UsageError(
        "--lora-modules (lora_modules) needs --mode (mode) swappable",
        hint="Leave --lora-modules (lora_modules) out.",
    )
    with pytest.raises(UsageError), naming_keys():
        raise error
    assert error.message == "lora_modules needs mode swappable"
    assert error.hint == "Leave lora_modules out."
