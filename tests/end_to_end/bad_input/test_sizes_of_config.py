"""A config whose sizes are not those of the weights is refused before anything is traced."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


@pytest.fixture(autouse=True)
def _untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that traces."""
    import torch

    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("it was traced"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 2}, "word_embeddings.weight: the checkpoint has ["),
        ({"hidden_size": 8}, "its config means [8"),
        ({"intermediate_size": 5}, "its config means [5"),
        ({"num_hidden_layers": 5}, "the checkpoint has none, its config means ["),
    ],
)
def test_it_is_named_with_both_shapes(
    change: dict[str, int], words: str, tiny: TinyModels, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = shutil.copytree(tiny.base("deberta-v2"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **change}))
    out = tmp_path / "out"
    result = call(capsys, "export", "--base", base, "--out", out)
    assert result.code == 3, result.err
    assert words in result.err
    assert "Config and weights are not of one model" in result.err
    assert not out.exists()
