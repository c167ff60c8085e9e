"""Profiles of a recipe, checked as soon as there is a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.core.errors import UsageError
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


def test_a_profile_of_an_axis_that_is_not_there_is_refused_before_anything_is_written(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", "text-classification")
    export_dir = tmp_path / "out"
    with pytest.raises(UsageError, match="'sequenke'"):
        build(
            base,
            {"one": tiny.adapter(base)},
            export_dir,
            targets=["jetson-orin"],
            bundle={"enabled": True},
            profiles=[{"batch": 1, "sequenke": (1, 16, 32)}],
        )
    assert list(tmp_path.iterdir()) == []
