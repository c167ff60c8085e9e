"""Arguments that the public functions accept in place of specs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_export.commands.arguments import as_path, as_specs
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import UsageError


def test_specs_texts_and_paths_become_specs(tmp_path) -> None:
    (tmp_path / "r=8").mkdir()
    given = AdapterSpec(name="mine", source="here", scale=2.0)
    assert as_specs([given, "sst2=adapters/sst2", "org/adapter", str(tmp_path / "r=8")]) == [
        given,
        AdapterSpec(name="sst2", source="adapters/sst2"),
        AdapterSpec(source="org/adapter"),
        AdapterSpec(source=str(tmp_path / "r=8")),
    ]


def test_a_path_is_never_split() -> None:
    assert as_specs([Path("a=b")]) == [AdapterSpec(source="a=b")]


@pytest.mark.parametrize("wrong", ["one=adapter", ["=adapter"]])
def test_what_is_no_list_or_has_no_name_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match="adapter"):
        as_specs(wrong)


def test_a_path_may_be_a_text_or_missing() -> None:
    assert as_path("a/b") == as_path(Path("a/b")) == Path("a/b")
    assert as_path(None) is None
