"""Failures that were planted in a fleet: exactly these are named, each with its exit code."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lora_export.core.errors import AdapterError, InputError
from tests.helpers.fleets import run_here, tiny_fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

WEIGHTS = "adapter_model.safetensors"
ADAPTERS = (
    "corrupt",
    "dangling",
    "foreign",
    "gated",
    "idle",
    "one",
    "rank",
    "texts",
    "two",
)


def copy(folder: Path, name: str) -> Path:
    """Return a copy of the adapter ``one``, to be spoiled."""
    return shutil.copytree(folder / "adapters" / "one", folder / "adapters" / name)


def planted(tiny: TinyModels, folder: Path) -> Path:
    """Write a fleet with two good adapters and seven that fail, each in a way of its own."""
    fleet = tiny_fleet(tiny, folder)  # idle has no effect
    weights = copy(folder, "corrupt") / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-7])
    weights = copy(folder, "dangling") / WEIGHTS
    weights.unlink()
    weights.symlink_to("nowhere")
    weights = copy(folder, "rank") / WEIGHTS
    tensors = load_file(weights)
    name = next(each for each in tensors if "lora_B" in each)
    tensors[name] = tensors[name][:, :-1].copy()  # A has a row more
    save_file(tensors, weights, metadata={"format": "pt"})
    llama = tiny.adapter(tiny.base("llama", "text-generation"), task="text-generation",
                         labels_count=None)  # fmt: skip
    shutil.copytree(llama, folder / "adapters" / "foreign")
    copy(folder, "gated")
    copy(folder, "texts")
    (folder / "examples.jsonl").write_text(json.dumps({"text": "a b", "label": 0}) + "\n")
    for file in (folder / "base").glob("*token*"):
        file.unlink()  # texts cannot be read without a tokenizer
    others = [name for name in ADAPTERS if name not in {"gated", "texts"}]
    table = yaml.safe_load(fleet.read_text()) | {
        "adapters": [
            *({"base": "tiny", "path": f"adapters/{name}"} for name in others),
            {"base": "tiny", "path": "adapters/gated",
             "latency": {"max_ratio": 1e-3, "rounds": 10, "length": 8}},
            {"base": "tiny", "path": "adapters/texts",
             "verify": {"dataset": str(folder / "examples.jsonl")}},
        ],
    }  # fmt: skip
    fleet.write_text(yaml.safe_dump(table))
    return fleet


def failures(rows: dict[str, Any]) -> dict[str, int]:
    """Return the exit code of each row that failed."""
    return {name: row["exit_code"] for name, row in rows.items()
            if name != "exit" and row["status"] == "failed"}  # fmt: skip


def test_exactly_the_planted_failures_are_named(tiny: TinyModels, tmp_path: Path) -> None:
    fleet = planted(tiny, tmp_path)
    rows = run_here(fleet)
    codes = {
        "corrupt": 3,
        "dangling": 3,
        "foreign": 3,
        "rank": 3,
        "texts": 3,
        "idle": 5,
        "gated": 6,
    }
    wanted = {f"adapter:tiny/merged/{name}": code for name, code in codes.items()}
    assert failures(rows) == wanted
    assert rows["exit"] == 5
    words = {
        "corrupt": WEIGHTS, "dangling": WEIGHTS, "foreign": "foreign", "rank": "share a rank",
        "texts": "tokenizer", "idle": "effect", "gated": "latency",
    }  # fmt: skip
    for name, word in words.items():
        row = rows[f"adapter:tiny/merged/{name}"]
        assert word in row["message"], row["message"]
        assert row["next"].startswith("lora-export ")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {row["id"] for row in report["rows"] if row["status"] == "failed"} == set(wanted)
    assert report["failures"][0].endswith("/idle")  # 5 before 6 before 3

    file = tmp_path / "out/exports/tiny/merged/weights/two.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")  # damaged in the store: made again
    again = run_here(fleet, only_changed=True)
    done = [name for name, row in again.items() if name != "exit" and row["status"] == "done"]
    assert done == ["adapter:tiny/merged/two"]
    assert failures(again) == wanted


@pytest.mark.parametrize(
    ("entry", "error", "said"),
    [
        ({"path": "adapters/none-*"}, InputError, "nothing matches it"),
        ({"path": "adapters/two", "name": "one"}, AdapterError, "are called 'one'"),
    ],
)
def test_a_fleet_that_cannot_be_meant_is_refused_before_anything_runs(
    entry: dict[str, str], error: type[Exception], said: str, tiny: TinyModels, tmp_path: Path
) -> None:
    fleet = tiny_fleet(tiny, tmp_path)
    table = yaml.safe_load(fleet.read_text())
    table["adapters"].append({"base": "tiny", **entry})
    fleet.write_text(yaml.safe_dump(table))
    with pytest.raises(error, match=said):
        run_here(fleet)
    assert not (tmp_path / "out").exists()
