"""The adapters of a recipe as they are merged, and read again from what the manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.commands.adapter_inputs import read_specs, reload_adapter
from lora_export.commands.recipe import CombineSpec
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.manifest import AdapterRecord
from tests.helpers.peft_files import pair, write_peft

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.combined_record import PartRecord


@pytest.fixture
def specs(tmp_path: Path) -> list[AdapterSpec]:
    """Two adapters of rank 4 by their patterns, in configs of rank 6."""
    return [
        AdapterSpec(name=name, source=str(write_peft(
            tmp_path / name, pair("layer", 12, 16, 4, seed=seed), r=6, rank_pattern={"layer": 4})))
        for seed, name in enumerate("ab")
    ]  # fmt: skip


def record_of(adapter: Adapter, **more: object) -> AdapterRecord:
    return AdapterRecord.model_validate(
        {
            "source": adapter.source, "format": adapter.format, "rank": adapter.max_rank,
            "merged_from": "checkpoint", "tensors_total": 4, "tensors_applied": 4,
            "missing_in_base": [], "sha256": adapter.sha256, **more,
        }
    )  # fmt: skip


def test_a_combination_records_the_rank_that_it_used(specs: list[AdapterSpec], tmp_path: Path):
    (given,) = read_specs(specs, tmp_path, CombineSpec(method="svd"))
    combined = given.record(tmp_path)
    assert combined is not None
    assert (combined.rank, given.adapter.max_rank) == (6, 6)
    (other,) = read_specs(specs, tmp_path, CombineSpec(method="svd", rank=6))
    assert other.adapter.sha256 == given.adapter.sha256
    (linear,) = read_specs(specs, tmp_path, CombineSpec(method="linear"))
    record = linear.record(tmp_path)
    assert record is not None
    assert record.rank is None


@pytest.mark.parametrize("recorded", [6, None], ids=["recorded", "before ranks were recorded"])
def test_a_combination_is_read_again_with_the_rank_it_had(
    specs: list[AdapterSpec], tmp_path: Path, recorded: int | None
):
    """A record without a rank meant the largest one of all tensors, and means it still."""
    (given,) = read_specs(specs, tmp_path, CombineSpec(method="svd"))
    combined = given.record(tmp_path)
    assert combined is not None
    record = record_of(given.adapter, combined=combined.model_copy(update={"rank": recorded}))

    def locate(name: str, _: AdapterRecord | PartRecord) -> AdapterSpec:
        return next(spec for spec in specs if spec.name == name)

    found = reload_adapter("a-b", record, locate)
    assert found.max_rank == (recorded or 4)
    assert (found.sha256 == given.adapter.sha256) == (recorded == 6)
