"""The verdict on an export: parity, and what quantization cost where a limit was set for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.bundle.bundled_checks import require_verified
from lora_export.core.errors import AdapterError, ParityError
from lora_export.core.manifest import Manifest, PackRecord, RowRecord, read_manifest
from lora_export.core.modes import Mode
from lora_export.exports.servable import require_servable
from lora_export.exports.verdict import lossy_names, verdict_of
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


def shared(export_dir: Path, field: str, losses: dict[str, str | None]) -> Manifest:
    """Return a manifest whose adapters share a graph that fails, with these verdicts of theirs."""
    manifest = judged(export_dir)
    name = {"pack": "swappable", "row": "batched"}[field]
    graph = manifest.base_graph.model_copy(
        update={"mode": Mode(name), "loss": "fail", "verification": "pass"}
    )
    record = manifest.adapters[ADAPTER]
    made = {
        "pack": lambda _, loss: PackRecord(
            safetensors="a", onnx_adapter="a", base="0" * 64, verification="pass", loss=loss
        ),
        "row": lambda row, loss: RowRecord(row=row, verification="pass", loss=loss),
    }
    adapters = {
        each: record.model_copy(update={field: made[field](at, loss)})
        for at, (each, loss) in enumerate(losses.items(), 1)
    }
    graphs = {"base": manifest.base_graph, name: graph}
    return manifest.model_copy(update={"graphs": graphs, "adapters": adapters})


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
    assert lossy_names(manifest) == (ADAPTER,)
    with pytest.raises(ParityError, match=f"quantization loses too much: {ADAPTER}") as caught:
        require_verified(manifest, allow_failed=False)
    assert "--allow-failed" in str(caught.value.hint)
    require_verified(manifest, allow_failed=True)
    with pytest.raises(ParityError, match="lost more by quantization") as caught:
        require_servable(manifest, ADAPTER)
    assert "serve the others: --adapter billing_intents" in str(caught.value.hint)
    require_servable(manifest, "billing_intents")
    require_verified(judged(export_dir), allow_failed=False)


@pytest.mark.parametrize("field", ["pack", "row"])
def test_an_adapter_of_a_shared_graph_that_lost_too_much_is_refused(
    export_dir: Path, field: str
) -> None:
    manifest = shared(export_dir, field, {"good": "pass", "bad": "fail"})
    assert lossy_names(manifest) == ("bad",)
    with pytest.raises(ParityError, match="'bad' lost more by quantization") as caught:
        require_servable(manifest, "bad")
    assert "serve the others: --adapter good." in str(caught.value.hint)
    require_servable(manifest, "good")
    with pytest.raises(ParityError, match="loses too much: bad"):
        require_verified(manifest, allow_failed=False)


def test_where_no_adapter_is_named_all_of_a_lost_shared_graph_are_refused(export_dir: Path) -> None:
    """An export that was verified before adapters had verdicts of their own."""
    manifest = shared(export_dir, "pack", {"one": None, "two": None})
    assert lossy_names(manifest) == ("swappable",)
    for name in ("one", "two"):
        with pytest.raises(ParityError, match="lost more by quantization") as caught:
            require_servable(manifest, name)
        assert "--adapter" not in str(caught.value.hint)


def test_what_is_not_there_is_not_served(export_dir: Path) -> None:
    with pytest.raises(AdapterError, match="has no adapter 'nobody'"):
        require_servable(judged(export_dir), "nobody")
