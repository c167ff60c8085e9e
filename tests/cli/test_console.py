"""What flags are taken for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.cli.console import parse_adapter

if TYPE_CHECKING:
    from pathlib import Path


def test_an_adapter_is_a_path_or_a_name_and_a_path(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    assert parse_adapter(str(path)) == {"source": str(path)}
    assert parse_adapter(f"mine={path}") == {"name": "mine", "source": str(path)}


def test_a_name_with_a_slash_is_taken_for_one_where_there_is_no_such_path(tmp_path: Path) -> None:
    odd = tmp_path / "r=8"
    odd.mkdir()
    assert parse_adapter(str(odd)) == {"source": str(odd)}
    assert parse_adapter(f"a/b={odd}") == {"name": "a/b", "source": str(odd)}
    missing = str(tmp_path / "r=9")
    assert parse_adapter(missing) == {"source": missing}
