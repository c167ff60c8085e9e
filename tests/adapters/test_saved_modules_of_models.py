"""A saved module inside a saved one: PEFT says what can be loaded again."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import UnsupportedError
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-classification"
LAYER = "bert.encoder.layer.1"

NESTED: dict[str, dict[str, Any]] = {
    "pooler": {"modules_to_save": ["pooler", "pooler.dense"]},
    "inner one first": {"modules_to_save": ["pooler.dense", "pooler"]},
    "layer": {"modules_to_save": [LAYER, f"{LAYER}.attention"]},
    "an end of many names": {"modules_to_save": ["1.output", "dense"]},
    "token rows": {
        "modules_to_save": ["embeddings"],
        "trainable_token_indices": {"word_embeddings": [1, 2]},
    },
}
PLAIN: dict[str, dict[str, Any]] = {
    "siblings": {"modules_to_save": ["pooler", "classifier"]},
    "a target inside": {"modules_to_save": ["pooler"], "target_modules": ["query", "dense"]},
    "a layer": {"modules_to_save": [LAYER]},
    "biases": {"modules_to_save": ["pooler"], "bias": "all"},
}


def loads(base: Path, adapter: Path) -> bool:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peft.PeftModel.from_pretrained(load_tiny(base, TASK, labels_count=3), adapter)
        except KeyError:
            return False
    return True


@pytest.mark.parametrize("settings", [*NESTED.values(), *PLAIN.values()], ids=[*NESTED, *PLAIN])
def test_what_peft_cannot_load_again_is_refused_by_name(settings, tiny) -> None:
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, task=TASK, **settings)
    if loads(base, adapter):
        assert read_adapter(adapter, name="x", source="given").saved
        return
    with pytest.raises(UnsupportedError, match="within") as caught:
        read_adapter(adapter, name="x", source="given")
    assert str(sorted(settings["modules_to_save"])) in caught.value.message
    assert caught.value.exit_code == 4


def test_both_kinds_are_met(tiny) -> None:
    base = tiny.base("bert", TASK)
    for table, expected in ((NESTED, False), (PLAIN, True)):
        for settings in table.values():
            assert loads(base, tiny.adapter(base, task=TASK, **settings)) is expected, settings
