"""Exports of adapters whose vocabulary is not the base's; PEFT on a resized base is the oracle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from lora_export.core.errors import UnsupportedError
from lora_export.runtime import open_export
from tests.cli.exports import assert_intact, manifest_of, report, run_graph
from tests.cli.running import call
from tests.helpers.vocabulary import (
    FAMILIES,
    TOKENS,
    logits_of,
    resized_peft,
    save_base,
    save_grown,
)

if TYPE_CHECKING:
    from pathlib import Path

GROWN, SHRUNK = TOKENS + 5, TOKENS - 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> dict[str, Path]:
    """A tied Llama, and adapters of it: one that keeps the vocabulary, one that grows it, …"""
    root, family = tmp_path_factory.mktemp("llama"), FAMILIES["llama-tied"]
    found = {"base": save_base(family, root / "base")}
    for name, size in (("plain", TOKENS), ("grown", GROWN), ("shrunk", SHRUNK)):
        found[name] = root / name
        way = "saved because resized" if size != TOKENS else "plain"
        save_grown(family, found["base"], found[name], way, size)
    return found


def export(capsys, *arguments: Any) -> Any:
    return call(capsys, "merge-and-build", "--no-latency", *arguments)


def ids_of(size: int) -> dict[str, np.ndarray]:
    last = size - 1
    ids = np.array([[5, 9, 17, last, 64, 2], [last - 1, 8, 3, 90, last, 7]])
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.ascontiguousarray(positions),
    }


def test_each_merged_graph_has_its_own_vocabulary(llama, tmp_path, capsys) -> None:
    out, family = tmp_path / "out", FAMILIES["llama-tied"]
    adapters = [f"--adapter={name}={llama[name]}" for name in ("plain", "grown")]
    result = export(capsys, "--base", llama["base"], *adapters, "--out", out, "--json")
    assert result.code == 0, result.err
    assert "grows the vocabulary from 128 to 133" in str(result.document["notes"])
    added = call(capsys, "add", out, "--adapter", f"shrunk={llama['shrunk']}", "--json")
    assert added.code == 0, added.err
    assert "shrinks the vocabulary from 128 to 120" in str(added.document["notes"])
    verified = call(capsys, "verify", out, "--base", llama["base"])
    assert verified.code == 0, verified.err
    assert_intact(out)
    manifest, parity = manifest_of(out), report(out, "parity")["graphs"]
    for name, size in (("plain", TOKENS), ("grown", GROWN), ("shrunk", SHRUNK)):
        assert manifest["adapters"][name].get("vocab_size") == (None if size == TOKENS else size)
        assert parity[name]["verdict"] == "pass"
        graph = onnx.load(out / f"{name}.onnx", load_external_data=False).graph
        assert graph.output[0].type.tensor_type.shape.dim[-1].dim_value == size
        wanted = logits_of(resized_peft(family, llama["base"], llama[name], size), size).numpy()
        found = run_graph(out, name, ids_of(size))
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
    assert call(capsys, "verify", out).code == 0  # against its golden outputs
    assert call(capsys, "remove", out, "grown").code == 0
    assert_intact(out)


@pytest.mark.parametrize("mode", ["swappable", "batched"])
def test_graphs_that_adapters_share_keep_the_vocabulary(mode, llama, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    plain, grown = (f"--adapter={name}={llama[name]}" for name in ("plain", "grown"))
    result = export(capsys, "--base", llama["base"], grown, "--mode", mode, "--out", out)
    assert result.code == 4
    assert result.err.startswith("error:")  # before anything is traced
    assert "grows the vocabulary from 128 to 133" in result.err
    assert "--mode merged" in result.err
    assert not out.exists()
    assert export(capsys, "--base", llama["base"], plain, "--mode", mode, "--no-verify",
                  "--out", out).code == 0  # fmt: skip
    added = call(capsys, "add", out, "--adapter", f"x={llama['grown']}")
    assert added.code == 4
    assert "grows the vocabulary" in added.err


def test_a_merge_at_load_keeps_the_vocabulary(llama, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert call(capsys, "export", "--base", llama["base"], "--out", out).code == 0
    with pytest.raises(UnsupportedError, match="grows the vocabulary"):
        open_export(out, adapters={"x": llama["grown"]}).load("x")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gptj", "bart", "whisper"])
def test_families_end_to_end(kind, tmp_path, capsys) -> None:
    family, size = FAMILIES[kind], GROWN
    base = save_base(family, tmp_path / "base")
    save_grown(family, base, tmp_path / "adapter", "saved because resized", size)
    out = tmp_path / "out"
    result = export(capsys, "--base", base, "--adapter", f"x={tmp_path / 'adapter'}",
                    "--task", family.task, "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    row = report(out, "parity")["graphs"]["x"]
    assert row["verdict"] == "pass"
    assert row["metrics"]["relative_l2"] < 1e-5
    record = manifest_of(out)["adapters"]["x"]
    assert record["vocab_size"] == size
    assert record["tensors_applied"] == record["tensors_total"]
    config = json.loads((base / "config.json").read_text())
    assert config["vocab_size"] == TOKENS


def test_inspect_says_how_an_adapter_changes_the_vocabulary(llama, capsys) -> None:
    for name, said in (("grown", "grows"), ("shrunk", "shrinks")):
        size = {"grown": GROWN, "shrunk": SHRUNK}[name]
        result = call(capsys, "inspect", llama["base"], llama[name], "--json")
        assert result.document["fit"]["fits"]
        assert result.document["fit"]["vocabulary"] == (
            f"{said} the vocabulary from {TOKENS} to {size}"
        )
    plain = call(capsys, "inspect", llama["base"], llama["plain"], "--json")
    assert plain.document["fit"]["vocabulary"] is None
