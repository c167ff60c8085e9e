"""Adapters added to an export, taken out, replaced: the rest stays, and torch is absent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.cli.exports import assert_intact, manifest_of, report, scale_tensor
from tests.cli.running import HEAVY, REPOSITORY, call, command, snapshot, stagings
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TASK = "text-classification"
LIGHT = (*HEAVY, "onnxruntime", "tokenizers", "scipy")
"""What `add` and `remove` do without."""


class Both(NamedTuple):
    base: Path
    first: Path
    second: Path
    alone: Path
    together: Path


@pytest.fixture(scope="module")
def both(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Return an export with one adapter, and one with both, not verified."""
    from lora_export.cli import run

    base = tiny.base("bert", TASK)
    first, second = tiny.adapter(base, r=4, seed=1), tiny.adapter(base, r=2, seed=3)
    folder = tmp_path_factory.mktemp("extend")
    start = ["export", "--quiet", "--base", str(base), "--task", TASK, f"--adapter=first={first}"]
    assert run([*start, "--out", str(folder / "alone")]) == 0
    assert run([*start, f"--adapter=second={second}", "--out", str(folder / "together")]) == 0
    return Both(base, first, second, folder / "alone", folder / "together")


@pytest.fixture
def alone(both: Both, tmp_path: Path) -> Path:
    shutil.copytree(both.alone, tmp_path / "alone")
    return tmp_path / "alone"


@pytest.fixture
def together(both: Both, tmp_path: Path) -> Path:
    shutil.copytree(both.together, tmp_path / "together")
    return tmp_path / "together"


def files_of(export: Path) -> dict[str, bytes]:
    """Return all files but the manifest."""
    return {n: data for n, data in snapshot(export).items() if n != "lora_export.json"}


def test_add_without_torch_writes_the_bytes_that_the_build_writes(both: Both, alone: Path) -> None:
    result = command("add", alone, "--adapter", f"second={both.second}", "--json", without=LIGHT)
    assert result.code == 0, result.err
    assert set(result.document["adapters"]) == {"first", "second"}
    assert files_of(alone) == files_of(both.together)
    assert manifest_of(alone) == manifest_of(both.together)
    assert_intact(alone)
    assert stagings(alone, alone.parent) == []


def test_added_adapter_is_verified_later(both: Both, alone: Path, capsys) -> None:
    added = call(capsys, "add", alone, "--adapter", f"second={both.second}")
    assert added.code == 0, added.err
    assert manifest_of(alone)["graphs"]["second"]["verification"] == "unverified"
    verified = call(capsys, "verify", alone, "--base", both.base)
    assert verified.code == 0, verified.out
    assert manifest_of(alone)["graphs"]["second"]["verification"] == "pass"
    assert_intact(alone)


def test_several_adapters_at_once(both: Both, alone: Path, capsys) -> None:
    result = call(
        capsys, "add", alone, "--adapter", f"b={both.second}", "--adapter", f"c={both.first}"
    )
    assert result.code == 0, result.err
    assert set(manifest_of(alone)["adapters"]) == {"first", "b", "c"}
    assert_intact(alone)


def test_name_is_that_of_the_folder_where_none_is_given(both, alone, tmp_path, capsys) -> None:
    shutil.copytree(both.second, tmp_path / "my-adapter")
    result = call(capsys, "add", alone, "--adapter", tmp_path / "my-adapter")
    assert result.code == 0, result.err
    assert "my-adapter" in manifest_of(alone)["adapters"]


def test_two_adds_at_once_both_arrive(both: Both, alone: Path) -> None:
    commands = [
        [sys.executable, "-m", "lora_export", "add", str(alone), "--adapter", f"n{i}={source}"]
        for i, source in enumerate((both.first, both.second, both.first))
    ]
    running = [subprocess.Popen(each, cwd=REPOSITORY) for each in commands]
    assert [each.wait(120) for each in running] == [0, 0, 0]
    assert set(manifest_of(alone)["adapters"]) == {"first", "n0", "n1", "n2"}
    assert_intact(alone)
    assert stagings(alone) == []


def test_taken_name_is_refused_and_replaced_on_request(both: Both, alone: Path, capsys) -> None:
    before = snapshot(alone)
    refused = call(capsys, "add", alone, "--adapter", f"first={both.second}")
    assert refused.code == 3
    assert "'first'" in refused.message
    assert "--replace" in refused.message
    assert snapshot(alone) == before
    replaced = call(capsys, "add", alone, "--adapter", f"first={both.second}", "--replace")
    assert replaced.code == 0, replaced.err
    expected = files_of(both.together)["weights/second.safetensors"]
    assert len(files_of(alone)["weights/first.safetensors"]) in range(
        len(expected) - 64, len(expected) + 65
    )
    assert files_of(alone)["weights/first.safetensors"] != before["weights/first.safetensors"]
    assert manifest_of(alone)["adapters"]["first"]["rank"] == 2
    assert_intact(alone)


def test_first_refusal_of_several_leaves_the_export_as_it_was(both, alone, tmp_path, capsys):
    """`add` of a good and a bad adapter: the message names the bad one, and nothing is added."""
    shutil.copytree(both.second, tmp_path / "bad")
    (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(b"")
    before = snapshot(alone)
    result = call(capsys, "add", alone, "--adapter", f"good={both.second}",
                  "--adapter", f"bad={tmp_path / 'bad'}")  # fmt: skip
    assert result.code == 3
    assert snapshot(alone) == before


def test_a_damaged_value_found_late_leaves_the_export_as_it_was(both, alone, tmp_path, capsys):
    """As above, where the fault (NaN) shows only while the second adapter is written."""
    from tests.end_to_end.bad_input.spoiling import poison

    poison(both.second, tmp_path / "bad", float("nan"))
    before = snapshot(alone)
    result = call(capsys, "add", alone, "--adapter", f"good={both.second}",
                  "--adapter", f"bad={tmp_path / 'bad'}")  # fmt: skip
    assert result.code == 3
    assert snapshot(alone) == before


def test_remove_takes_out_one_adapter_and_nothing_else(both: Both, together: Path) -> None:
    result = command("remove", together, "second", "--json", without=LIGHT)
    assert result.code == 0, result.err
    assert files_of(together) == files_of(both.alone)
    assert manifest_of(together) == manifest_of(both.alone)


def test_remove_of_an_unknown_adapter_names_the_known(together: Path, capsys) -> None:
    before = snapshot(together)
    result = call(capsys, "remove", together, "third")
    assert result.code == 3
    assert "'third'" in result.message
    assert "first, second" in result.message
    assert snapshot(together) == before


def test_removed_adapter_leaves_no_golden_outputs_and_no_row(both, together, capsys) -> None:
    assert call(capsys, "verify", together, "--base", both.base).code == 0
    assert (together / "golden" / "second.npz").is_file()
    assert call(capsys, "remove", together, "second").code == 0
    assert not (together / "golden" / "second.npz").exists()
    assert_intact(together)
    assert set(report(together, "parity")["graphs"]) == {"base", "first"}


def test_build_into_an_existing_export_keeps_its_adapters(both, alone, capsys) -> None:
    weights = files_of(alone)["weights/first.safetensors"]
    base_file = (alone / "weights" / "base.safetensors").stat()
    result = call(capsys, "merge-and-build", "--base", both.base, "--task", TASK, "--no-verify",
                  "--adapter", f"second={both.second}", "--out", alone)  # fmt: skip
    assert result.code == 0, result.err
    assert set(manifest_of(alone)["adapters"]) == {"first", "second"}
    assert files_of(alone)["weights/first.safetensors"] == weights
    assert (alone / "weights" / "base.safetensors").stat().st_ino == base_file.st_ino
    assert files_of(alone) == files_of(both.together)
    assert_intact(alone)


def test_verified_build_into_an_export_keeps_the_rows_of_the_others(both, alone, capsys) -> None:
    """The manifest goes on calling `first` verified: the report has to go on saying why."""
    assert call(capsys, "verify", alone, "--base", both.base).code == 0
    result = call(capsys, "merge-and-build", "--base", both.base, "--task", TASK,
                  "--no-latency", "--adapter", f"second={both.second}", "--out", alone)  # fmt: skip
    assert result.code == 0, result.err
    graphs = manifest_of(alone)["graphs"]
    assert {name: graph["verification"] for name, graph in graphs.items()} == {
        "base": "pass", "first": "pass", "second": "pass",
    }  # fmt: skip
    assert set(report(alone, "parity")["graphs"]) == {"base", "first", "second"}
    assert_intact(alone)


def test_rebuild_of_the_same_adapter_replaces_it(both: Both, alone: Path, capsys) -> None:
    result = call(capsys, "export", "--base", both.base, "--task", TASK,
                  "--adapter", f"first={both.first}", "--out", alone)  # fmt: skip
    assert result.code == 0, result.err
    assert files_of(alone) == files_of(both.alone)


def test_another_base_is_refused_and_the_export_untouched(tiny, both, alone, capsys) -> None:
    other = tiny.base("bert", TASK, seed=5)
    before = snapshot(alone)
    result = call(capsys, "export", "--base", other, "--task", TASK,
                  "--adapter", f"second={both.second}", "--out", alone)  # fmt: skip
    assert result.code == 3
    assert "another base" in result.message
    assert snapshot(alone) == before
    result = call(capsys, "add", alone, "--adapter", f"b={both.second}", "--base", other)
    assert result.code == 3
    assert "fingerprint" in result.message
    assert snapshot(alone) == before


def test_damaged_base_weights_are_not_merged_from(both: Both, alone: Path, capsys) -> None:
    """The base file lost a tensor's worth of bytes: `add` must not build on it."""
    path = alone / "weights" / "base.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    result = call(capsys, "add", alone, "--adapter", f"second={both.second}")
    assert result.code == 3
    assert "base.safetensors" in result.message
    assert set(manifest_of(alone)["adapters"]) == {"first"}


HOSTILE = {
    "newer": (4, "99", lambda m: {**m, "format_version": 99}),
    "incomplete": (3, "graphs", lambda m: {k: v for k, v in m.items() if k != "graphs"}),
    "climbing": (3, "../../x", lambda m: {**m, "files": {**m["files"], "../../x": "0" * 64}}),
    "absolute": (3, "/etc/passwd", lambda m: {**m, "files": {"/etc/passwd": "0" * 64}}),
    "unknown key": (3, "surprise", lambda m: {**m, "surprise": 1}),
    "no table": (3, "damaged", lambda m: [m]),
}


@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.parametrize("verb", ["add", "verify", "remove"])
def test_damaged_or_hostile_manifest(both: Both, alone: Path, capsys, verb, fault) -> None:
    code, word, edit = HOSTILE[fault]
    (alone / "lora_export.json").write_text(json.dumps(edit(manifest_of(alone))))
    before = snapshot(alone)
    rest = {"add": ("--adapter", f"b={both.second}"), "verify": (), "remove": ("first",)}[verb]
    result = call(capsys, verb, alone, *rest)
    assert result.code == code
    assert word in result.message
    assert snapshot(alone) == before


def test_export_directory_that_is_none(tmp_path: Path, both: Both, capsys) -> None:
    for arguments in (
        ("verify", tmp_path),
        ("remove", tmp_path, "first"),
        ("add", tmp_path, "--adapter", f"a={both.first}"),
        ("verify", tmp_path / "nowhere"),
    ):
        result = call(capsys, *arguments)
        assert result.code == 3, arguments
        assert "not an export directory" in result.message
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------- cast exports


@pytest.fixture(scope="module")
def cast(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a float32 base exported in float16, with one adapter, and another adapter."""
    from lora_export.cli import run

    base = tiny.base("deberta-v2", TASK)
    first, second = tiny.adapter(base, seed=1), tiny.adapter(base, seed=2)
    out = tmp_path_factory.mktemp("cast") / "out"
    given = ["--base", str(base), "--task", TASK, "--dtype", "float16", "--no-latency"]
    assert run(["merge-and-build", "--quiet", *given, f"--adapter=first={first}",
                f"--adapter=second={second}", "--out", str(out)]) == 0  # fmt: skip
    return base, second, out


def test_float16_export_is_within_its_tolerance(cast) -> None:
    rows = report(cast[2], "parity")["graphs"]
    assert {row["tolerance"] for row in rows.values()} == {5e-3}
    assert {row["verdict"] for row in rows.values()} == {"pass"}
    assert 1e-6 < rows["first"]["metrics"]["relative_l2"] < 5e-3


def test_another_dtype_is_refused(cast, tmp_path: Path, capsys) -> None:
    base, second, out = cast
    before = snapshot(out)
    result = call(capsys, "export", "--base", base, "--task", TASK, "--dtype", "float32",
                  "--adapter", f"third={second}", "--out", out)  # fmt: skip
    assert result.code == 3
    assert "another dtype: float16, not float32" in result.message
    assert snapshot(out) == before


def test_add_to_a_cast_export_is_exact_from_the_base(cast, tmp_path, capsys) -> None:
    base, second, out = cast
    shutil.copytree(out, tmp_path / "out")
    before = files_of(tmp_path / "out")["weights/second.safetensors"]
    result = call(capsys, "add", tmp_path / "out", "--adapter", f"second={second}",
                  "--base", base, "--replace")  # fmt: skip
    assert result.code == 0, result.err
    assert files_of(tmp_path / "out")["weights/second.safetensors"] == before
    assert manifest_of(tmp_path / "out")["adapters"]["second"]["merged_from"] == "checkpoint"


def test_add_to_a_cast_export_without_the_base_says_so(cast, tmp_path, capsys) -> None:
    base, second, out = cast
    shutil.copytree(out, tmp_path / "out")
    result = call(
        capsys, "add", tmp_path / "out", "--adapter", f"second={second}", "--replace", "--json"
    )
    assert result.code == 0, result.err
    assert result.document["adapters"]["second"]["merged_from"] == "export"
    verified = call(capsys, "verify", tmp_path / "out", "--base", base)
    assert verified.code == 0, verified.out


def test_planted_fault_survives_no_verification_of_an_added_adapter(both, alone, capsys) -> None:
    assert call(capsys, "add", alone, "--adapter", f"second={both.second}").code == 0
    scale_tensor(alone, "weights/second.safetensors", 1.01, containing="attention")
    assert call(capsys, "verify", alone, "--base", both.base).code == 5


# ------------------------------------------------------------------------- what would go unnoticed


def test_strict_does_not_take_an_unverified_adapter_for_a_verified_one(both, alone, capsys) -> None:
    added = call(capsys, "add", alone, "--adapter", f"other={both.second}")
    assert added.code == 0, added.err
    assert call(capsys, "verify", alone).code == 0
    strict = call(capsys, "verify", alone, "--strict")
    assert strict.code == 5
    assert "other: unverified" in strict.out


@pytest.mark.parametrize(
    "flags", [("--dataset", "nowhere.jsonl"), ("--adapter", "x=y")], ids=lambda row: row[0]
)
def test_what_only_torch_can_compare_asks_for_the_base(alone, capsys, flags) -> None:
    result = call(capsys, "verify", alone, *flags)
    assert result.code == 2
    assert flags[0] in result.err
    assert "--base" in result.err


def test_adapter_of_another_task_is_not_added(tiny, both, alone, capsys) -> None:
    base = tiny.base("bert", "token-classification")
    foreign = tiny.adapter(base, task="token-classification")
    before = snapshot(alone)
    result = call(capsys, "add", alone, "--adapter", f"foreign={foreign}")
    assert result.code == 2
    assert "token-classification" in result.err
    assert snapshot(alone) == before


def test_adapter_with_an_empty_name_is_refused(both, alone, capsys) -> None:
    result = call(capsys, "add", alone, "--adapter", "=somewhere")
    assert result.code == 2


def test_export_without_an_adapter_says_so(tiny, tmp_path, capsys) -> None:
    result = call(capsys, "export", "--base", tiny.base("bert"), "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "no adapter" in result.out


@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_what_was_found_of_an_adapter_goes_with_it(tiny, tmp_path, capsys, mode) -> None:
    """A verdict on the adapter that had the name before is none on the new one."""
    base = tiny.base("bert")
    one, two, other = (tiny.adapter(base, seed=seed) for seed in (1, 2, 3))
    out = tmp_path / "out"
    build(base, {"one": one, "two": two}, out, mode=mode, verify={"enabled": True},
          latency={"enabled": mode == "merged", "max_ratio": 50})  # fmt: skip

    def known() -> set[str]:
        rows = report(out, "parity")["graphs"]
        return {*rows, *(name for row in rows.values() for name in row.get("adapters") or {})}

    before = known()
    assert {"one", "two"} <= before
    added = call(capsys, "add", out, "--adapter", f"one={other}", "--replace", "--quiet")
    assert added.code == 0, added.err
    assert "one" not in known()
    assert "two" in known()
    if mode == "merged":
        assert set(report(out, "latency")["graphs"]) == {"two"}
    page = (out / "reports" / "report.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| one |"))
    assert "unverified" in line
    assert call(capsys, "remove", out, "two", "--quiet").code == 0
    assert "two" not in known()
    assert "two" not in (out / "reports" / "report.html").read_text()
    if mode == "merged":
        assert_intact(out)
