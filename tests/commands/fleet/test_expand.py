"""A fleet expanded to rows: names, order, and what each key depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lora_export.commands.fleet.expand import plan_fleet
from lora_export.commands.fleet.spec import load_fleet
from lora_export.core.errors import AdapterError, InputError, UsageError
from lora_export.core.progress import Silent

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Plan, Row

FLEET: dict[str, Any] = {
    "bases": {"tiny": {"path": "base"}},
    "adapters": [{"base": "tiny", "path": "adapters/*"}],
    "store": "out",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with files in place of a base and three adapters: nothing opens them."""
    for name in ("base", "adapters/one", "adapters/two", "adapters/two-old"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights.safetensors").write_text(name)
    return tmp_path


def expanded(folder: Path, **changes: Any) -> Plan:
    """Return the plan of the fleet with changes."""
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump({**FLEET, **changes}))
    return plan_fleet(load_fleet(path), Silent())


def keys(plan: Plan) -> dict[str, str]:
    """Return the keys of rows by name."""
    return {row.id: row.key for row in plan.rows}


def by_id(plan: Plan) -> dict[str, Row]:
    """Return rows by name."""
    return {row.id: row for row in plan.rows}


def test_bases_variants_adapters_and_targets_are_rows(folder: Path) -> None:
    plan = expanded(
        folder,
        adapters=[{"base": "tiny", "path": "adapters/*", "exclude": "*-old"}],
        variants=[{"dtype": "float16"}, {"mode": "swappable", "quantize": "int4"}],
        targets=["cpu", "rtx", "jetson-orin"],
    )
    assert [row.id for row in plan.rows] == [
        "export:tiny/merged-float16",
        "adapter:tiny/merged-float16/one",
        "adapter:tiny/merged-float16/two",
        "engine:tiny/merged-float16/one@rtx",
        "engine:tiny/merged-float16/two@rtx",
        "bundle:tiny/merged-float16@jetson-orin",
        "export:tiny/swappable-int4",
        "adapter:tiny/swappable-int4/one",
        "adapter:tiny/swappable-int4/two",
        "engine:tiny/swappable-int4@rtx",
        "bundle:tiny/swappable-int4@jetson-orin",
    ]
    rows = by_id(plan)
    engine = rows["engine:tiny/merged-float16/two@rtx"]
    assert engine.needs == ("adapter:tiny/merged-float16/two",)
    bundle = rows["bundle:tiny/merged-float16@jetson-orin"]
    assert bundle.needs == ("export:tiny/merged-float16",)
    assert len(bundle.after) == 2


def test_rows_of_a_batched_export_have_the_plan_s_order(folder: Path) -> None:
    rows = by_id(expanded(folder, variants=[{"mode": "batched"}]))
    assert rows["adapter:tiny/batched/two"].after == ("adapter:tiny/batched/one",)
    assert rows["adapter:tiny/batched/one"].after == ()


def test_paths_do_not_depend_on_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    plan = expanded(folder)
    relative = plan_fleet(load_fleet("fleet.yaml"), Silent())
    assert relative == plan
    assert all(path.startswith("/") for row in plan.rows for path in row.inputs)


def test_a_key_changes_with_its_own_inputs_alone(folder: Path) -> None:
    before = keys(expanded(folder))
    assert keys(expanded(folder)) == before
    (folder / "adapters" / "two" / "weights.safetensors").write_text("changed")
    after = keys(expanded(folder))
    assert [name for name in before if before[name] != after[name]] == ["adapter:tiny/merged/two"]
    (folder / "base" / "weights.safetensors").write_text("changed")
    last = keys(expanded(folder))
    assert all(after[name] != last[name] for name in after)


def test_keys_do_not_depend_on_places(folder: Path) -> None:
    before = keys(expanded(folder))
    (folder / "base").rename(folder / "moved")
    after = keys(expanded(folder, bases={"tiny": {"path": "moved"}}))
    assert before == after


@pytest.mark.parametrize(
    "changes",
    [
        {"gates": {"strict": True}},
        {"gates": {"max_ratio": 1.2}},
        {"bases": {"tiny": {"path": "base", "verify": {"seed": 3}}}},
        {"adapters": [{"base": "tiny", "path": "adapters/*", "scale": 2.0}]},
    ],
)
def test_gates_and_settings_of_adapters_change_adapters_alone(
    folder: Path, changes: dict[str, Any]
) -> None:
    before, after = keys(expanded(folder)), keys(expanded(folder, **changes))
    assert before["export:tiny/merged"] == after["export:tiny/merged"]
    assert before["adapter:tiny/merged/one"] != after["adapter:tiny/merged/one"]


def test_a_data_set_is_an_input(folder: Path) -> None:
    (folder / "held-out.jsonl").write_text("{}")
    bases = {"tiny": {"path": "base", "verify": {"dataset": "held-out.jsonl"}}}
    plan = expanded(folder, bases=bases)
    row = by_id(plan)["adapter:tiny/merged/one"]
    assert row.job["recipe"]["verify"]["dataset"] == str(folder / "held-out.jsonl")
    assert str(folder / "held-out.jsonl") in row.inputs
    (folder / "held-out.jsonl").write_text("{} ")
    changed = keys(expanded(folder, bases=bases))
    assert changed[row.id] != row.key
    assert changed["export:tiny/merged"] == keys(plan)["export:tiny/merged"]


def test_an_adapter_that_cannot_be_read_stops_no_other(folder: Path) -> None:
    (folder / "adapters" / "two" / "weights.safetensors").unlink()
    (folder / "adapters" / "two" / "weights.safetensors").symlink_to("nowhere")
    rows = by_id(expanded(folder))
    assert rows["adapter:tiny/merged/one"].key != rows["adapter:tiny/merged/two"].key


def test_models_of_a_repository_are_rows_after_all_adapters(folder: Path) -> None:
    plan = expanded(folder, deploy={"triton": "models"})
    row = by_id(plan)["triton:tiny/merged"]
    assert row.after == ("adapter:tiny/merged/one", "adapter:tiny/merged/two",
                         "adapter:tiny/merged/two-old")  # fmt: skip
    assert row.job["settings"]["repository"] == str(folder / "models")
    assert row.job["name"] == "tiny-merged"
    other = expanded(folder, deploy={"triton": {"repository": "models", "text": True}})
    assert by_id(other)["triton:tiny/merged"].key != row.key


def test_an_adapter_with_a_dtype_of_its_own_has_an_export_of_its_own(folder: Path) -> None:
    plan = expanded(
        folder,
        adapters=[
            {"base": "tiny", "path": "adapters/one"},
            {"base": "tiny", "path": "adapters/two", "dtype": "float16"},
        ],
    )
    exports = [row for row in plan.rows if row.kind == "export"]
    assert [row.id.partition("-")[0] for row in exports] == ["export:tiny/merged"] * 2
    assert len({row.artifact for row in exports}) == 2
    own = next(row for row in plan.rows if row.adapter == "two")
    assert own.job["recipe"]["dtype"] == "float16"


def test_labels_of_a_base_are_an_adapter_s_until_it_says_otherwise(folder: Path) -> None:
    plan = expanded(
        folder,
        bases={"tiny": {"path": "base", "labels": ["a", "b"]}},
        adapters=[
            {"base": "tiny", "path": "adapters/one"},
            {"base": "tiny", "path": "adapters/two", "labels": None},
        ],
    )
    lines = {row.adapter: row.job["recipe"]["adapters"][0] for row in plan.rows if row.adapter}
    assert lines["one"]["labels"] == ["a", "b"]
    assert "labels" not in lines["two"]


def test_a_target_that_is_named_twice_is_one(folder: Path) -> None:
    twice, once = expanded(folder, targets=["rtx", "rtx"]), expanded(folder, targets="rtx")
    assert twice == once


def test_variants_that_would_be_called_alike_are_numbered(folder: Path) -> None:
    plan = expanded(folder, variants=[{"opset": 20}, {"opset": 21}, {"dtype": "float16"}])
    assert [row.variant for row in plan.rows if row.kind == "export"] == [
        "merged", "merged-2", "merged-float16",
    ]  # fmt: skip


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a pattern that matches nothing": (
        {"adapters": [{"base": "tiny", "path": "none/*"}]}, InputError, "nothing matches it",
    ),
    "a pattern whose matches are excluded": (
        {"adapters": [{"base": "tiny", "path": "adapters/*", "exclude": ["*"]}]},
        InputError, "all 3 of them are excluded",
    ),
    "an adapter that is not there": (
        {"adapters": [{"base": "tiny", "path": "./adapters/x/y"}]}, InputError, "does not exist",
    ),
    "a base that is not there": (
        {"bases": {"tiny": {"path": "bas"}}}, InputError, "does not exist",
    ),
    "two of one name": (
        {"adapters": [{"base": "tiny", "path": "adapters/one"},
                      {"base": "tiny", "path": "adapters/two", "name": "one"}]},
        AdapterError, "are called 'one'",
    ),
    "a path that is too long": (
        {"adapters": [{"base": "tiny", "path": "./" + "x" * 300}]}, InputError, "cannot be read",
    ),
    "a whole tree": ({"adapters": [{"base": "tiny", "path": "/**/*"}]}, UsageError, "whole trees"),
    "a name for many": (
        {"adapters": [{"base": "tiny", "path": "adapters/*", "name": "x"}]}, UsageError, "one name",
    ),
    "a name that is not allowed": (
        {"adapters": [{"base": "tiny", "path": "adapters/one", "name": "A/B"}]},
        AdapterError, "not allowed",
    ),
    "an unknown target": ({"targets": ["jetson"]}, UsageError, "unknown target"),
    "an unknown mode": ({"variants": [{"mode": "../x"}]}, UsageError, "mode"),
    "two variants of one name": (
        {"variants": [{"name": "a"}, {"name": "a", "opset": 20}]}, UsageError, "are called 'a'",
    ),
    "models of one name": (
        {"bases": {"a": {"path": "base"}, "a-b": {"path": "base"}},
         "adapters": [{"base": "a", "path": "adapters/*"}, {"base": "a-b", "path": "adapters/*"}],
         "variants": [{"name": "b-c"}, {"name": "c"}], "deploy": {"triton": "models"}},
        UsageError, "would both make 'triton a-b-c'",
    ),
    "a wrong setting of a repository": (
        {"deploy": {"triton": {"repository": "models", "instances": 0}}}, UsageError, "instances",
    ),
    "an unknown setting of a repository": (
        {"deploy": {"triton": {"repository": "models", "instance": 1}}},
        UsageError, "deploy.triton.instance",
    ),
    "a wrong block size": (
        {"variants": [{"quantize": {"weights": "int4", "block_size": 7}}]},
        UsageError, "block_size",
    ),
    "a wrong value of an adapter": (
        {"adapters": [{"base": "tiny", "path": "adapters/one", "scale": "x"}]}, UsageError, "scale",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_fleet_that_cannot_be_is_refused(case: str, folder: Path) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message):
        expanded(folder, **changes)
    assert not (folder / "out").exists()


def test_a_thousand_adapters_on_ten_bases_are_planned_in_seconds(tmp_path: Path) -> None:
    import time

    for base in range(10):
        (tmp_path / f"base{base}").mkdir()
        (tmp_path / f"base{base}" / "w").write_text(str(base))
    for at in range(100):
        (tmp_path / "adapters" / f"a{at}").mkdir(parents=True)
        (tmp_path / "adapters" / f"a{at}" / "w").write_text(str(at))
    began = time.perf_counter()
    plan = expanded(
        tmp_path,
        bases={f"b{at}": {"path": f"base{at}"} for at in range(10)},
        adapters=[{"base": f"b{at}", "path": "adapters/*"} for at in range(10)],
        targets=["cpu", "rtx", "jetson-orin"],
    )
    assert len(plan.rows) == 10 * (1 + 100 + 100 + 1)
    assert time.perf_counter() - began < 20
