"""The verdict on an export: parity, and what quantization cost where a limit was set for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.bundle.bundled_checks import require_verified
from lora_export.core.errors import AdapterError, ParityError
from lora_export.core.manifest import Manifest, read_manifest
from lora_export.exports.servable import require_servable
from lora_export.exports.verdict import lossy_graphs, verdict_of
from tests.helpers.showcase import save_showcase

if TYPE_CHECKING:
    from pathlib import Path

ADAPTER = "support-intents"


def judged(export_dir: Path, **losses: str | None) -> Manifest:
    """Return a manifest whose graphs all passed parity, with these verdicts on their losses."""
    manifest = read_manifest(export_dir)
    graphs = {
        name: each.model_copy(
            update={"verification": "pass", "loss": losses.get(name.replace("-", "_"))}
        )
        for name, each in manifest.graphs.items()
    }
    return manifest.model_copy(update={"graphs": graphs})


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_showcase(tmp_path_factory.mktemp("verdict") / "out")


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [(None, "pass"), ("ungated", "pass"), ("pass", "pass"), ("ambiguous",) * 2, ("fail",) * 2],
)
def test_a_loss_past_its_limit_is_the_verdict_of_the_export(
    export_dir: Path, loss: str | None, verdict: str
) -> None:
    assert verdict_of(judged(export_dir, support_intents=loss, base="ungated")) == verdict


def test_what_lost_too_much_is_neither_bundled_nor_served_by_name(export_dir: Path) -> None:
    manifest = judged(export_dir, support_intents="fail", base="pass")
    assert lossy_graphs(manifest) == (ADAPTER,)
    with pytest.raises(ParityError, match=f"quantization loses too much: {ADAPTER}") as caught:
        require_verified(manifest, allow_failed=False)
    assert "--allow-failed" in str(caught.value.hint)
    require_verified(manifest, allow_failed=True)
    with pytest.raises(AdapterError, match="lost more by quantization"):
        require_servable(manifest, ADAPTER)
    require_servable(manifest, "billing_intents")
    require_verified(judged(export_dir), allow_failed=False)
