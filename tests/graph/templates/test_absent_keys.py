"""An absent key means what transformers takes it for: the tables against transformers' configs."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.formulas import evaluate


def theirs(config: Any, key: str) -> Any:
    """Return a setting of transformers' config; the base of rotary positions is in a table."""
    if key == "rope_theta":
        return config.rope_parameters["rope_theta"]
    return getattr(config, key)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_absent_sizes_and_numbers_are_those_of_transformers(model_type: str) -> None:
    family, config = FAMILIES[model_type], CONFIG_MAPPING[model_type]()
    sizes = {
        name: value
        for name, key in family.sizes.items()
        if isinstance(value := getattr(config, key, None), int)
    }
    for key, value in family.absent.items():
        found = theirs(config, key) if key == "rope_theta" or hasattr(config, key) else None
        if isinstance(value, str) and value.startswith("="):
            name = next(name for name, own in family.sizes.items() if own == key)
            others = {other: size for other, size in sizes.items() if other != name}
            assert found in {None, evaluate(value[1:], others)}, key
        elif found is None and not hasattr(config, key):
            assert key not in family.sizes.values(), key
        else:
            assert found == value, key


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_absent_choices_are_those_of_transformers(model_type: str) -> None:
    family, config = FAMILIES[model_type], CONFIG_MAPPING[model_type]()
    for key, values in family.all_choices.items():
        if hasattr(config, key):
            assert getattr(config, key) == family.absent.get(key, values[0]), key


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_size_that_transformers_has_no_default_for_has_to_be_given(model_type: str) -> None:
    """A key that the table gives no meaning to when it is absent is one that is refused then."""
    family = FAMILIES[model_type]
    for key in {*family.sizes.values(), *family.floats.values()} - family.absent.keys():
        assert key not in family.nullable, key
