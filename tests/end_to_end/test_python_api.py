"""Every function of `lora_export` on a tiny model, with texts and paths as its arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lora_export as lx

IDS = np.arange(3, 11, dtype=np.int64)[None]
FEEDS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "token_type_ids": 0 * IDS}


class Lines:
    """A `Progress` that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def start(self, what: str, total_bytes: int | None = None) -> None:
        self.stages.append(what)

    def advance(self, count_bytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def base(tiny) -> Path:
    return tiny.base("bert", "text-classification", tokenizer=True)


@pytest.fixture(scope="module")
def adapters(tiny, base) -> dict[str, Path]:
    return {name: tiny.adapter(base, seed=seed) for name, seed in (("one", 61), ("two", 62))}


@pytest.fixture(scope="module")
def export(base, adapters, tmp_path_factory) -> Path:
    """An export that a recipe in Python describes."""
    root = tmp_path_factory.mktemp("api")
    progress = Lines()
    recipe = lx.Recipe(
        base=str(base),
        adapters=[lx.AdapterSpec(name="one", source=str(adapters["one"]))],
        task="text-classification",
        mode=lx.Mode.MERGED,
        latency=lx.LatencySpec(enabled=False),
        output=str(root / "out"),
    )
    outcome = lx.merge_and_build(recipe, progress)
    assert outcome.exit_code(strict=True) == 0
    assert outcome.reports.parity is not None
    assert outcome.reports.parity.graphs["one"].verdict == "pass"
    graphs = {"tracing the graph", "graph from the cache", "graph from a template"}
    assert graphs & {*progress.stages}
    return Path(outcome.output)


def test_adapters_come_run_and_go(export, adapters) -> None:
    outcome = lx.add(str(export), [f"two={adapters['two']}"])
    assert set(outcome.manifest.adapters) == {"one", "two"}
    with lx.open_export(str(export), adapters={"again": adapters["two"]}) as session:
        base, one, two, again = (
            session.run(FEEDS, adapter=name)["logits"] for name in (None, "one", "two", "again")
        )
    np.testing.assert_allclose(two, again, rtol=1e-5, atol=1e-6)  # merged at load, and by add
    assert not np.allclose(base, one)
    assert not np.allclose(one, two)
    assert set(lx.remove(str(export), "two").manifest.adapters) == {"one"}


def test_an_export_is_verified_and_timed(export, base, adapters, tmp_path) -> None:
    outcome = lx.verify(str(export), base=base, adapters=[f"one={adapters['one']}"])
    assert outcome.reports.parity is not None
    assert outcome.reports.parity.graphs["one"].verdict == "pass"
    timed = lx.bench(
        str(export), lengths=[8], rounds=5, startup=False, report=str(tmp_path / "bench.json")
    )
    assert timed.file == tmp_path / "bench.json"
    assert [cell.length for cell in timed.report.cells] == [8]
    assert timed.exit_code(strict=True) == 0


def test_a_checkpoint_is_merged_and_restored(base, adapters, tmp_path) -> None:
    merged = lx.merge_checkpoint(str(base), [str(adapters["one"])], str(tmp_path / "merged"))
    assert merged.output == tmp_path / "merged"
    fingerprint = lx.unmerge_checkpoint(str(merged.output), base, str(tmp_path / "again"))
    assert fingerprint == merged.record.base.fingerprint
    again = lx.inspect(str(tmp_path / "again"), hashed=True)
    assert isinstance(again, lx.CheckpointReport)
    assert again.fingerprint == fingerprint != merged.record.fingerprint


def test_an_adapter_is_described_and_converted(export, base, adapters, tmp_path) -> None:
    done = lx.convert(str(adapters["one"]), str(tmp_path / "peft"), to="peft", base=str(base))
    found = lx.inspect(tmp_path / "peft")
    assert isinstance(found, lx.AdapterReport)
    assert sum(found.ranks.values()) == done.modules
    for given in (base, export):
        pair = lx.inspect(str(given), str(tmp_path / "peft"))
        assert pair.fit.fits
    assert isinstance(pair.base, lx.ExportReport)
    assert pair.base.adapters["one"].rank == 4


def test_errors_are_the_public_ones(export, tmp_path) -> None:
    with pytest.raises(lx.ExportDirectoryError, match="is not an export directory") as caught:
        lx.remove(tmp_path, "one")
    assert isinstance(caught.value, lx.InputError)
    assert caught.value.exit_code == lx.InputError.exit_code == 3
    with pytest.raises(lx.UsageError, match="not a list"):
        lx.add(export, "adapters/one")
    with pytest.raises(lx.UsageError, match="cannot read the recipe"):
        lx.load_recipe(str(tmp_path / "recipe.yaml"))
