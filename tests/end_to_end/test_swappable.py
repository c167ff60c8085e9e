"""``--mode swappable`` from end to end: one graph, adapters of every kind, against PEFT."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.commands.add import add
from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import make_recipe
from lora_export.commands.remove import remove
from lora_export.commands.verify import verify
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.manifest import read_manifest
from lora_export.core.reports.report_model import as_json
from lora_export.runtime import open_export
from tests.cli.exports import manifest_of, peft_model, run_graph, run_torch
from tests.cli.running import HEAVY, call, command
from tests.helpers.builds import build, file_hashes, spec

if TYPE_CHECKING:
    from collections.abc import Mapping

TASK = "text-classification"
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
IDS = np.random.default_rng(3).integers(3, 200, (2, 7))
FEEDS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


def with_active_adapter(
    export_dir: Path, name: str, feeds: Mapping[str, Any] = FEEDS
) -> np.ndarray:
    """Run an ``.onnx_adapter`` as a program in any language would, through ONNX Runtime alone."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(export_dir / "swappable.onnx"), options)
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(export_dir / "adapters" / f"{name}.onnx_adapter"))
    run = onnxruntime.RunOptions()
    run.add_active_adapter(adapter)
    wanted = {each.name: feeds[each.name] for each in session.get_inputs()}
    return np.asarray(session.run(None, wanted, run)[0])


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.base("roberta", TASK)


@pytest.fixture(scope="module")
def pair(tiny, base):
    """Two adapters of two GLUE-like tasks: heads with 3 and with 2 labels."""
    return {
        "mnli": tiny.adapter(base, seed=41, labels_count=3),
        "sst2": tiny.adapter(base, seed=42, labels_count=2, r=7, use_rslora=True),
    }


@pytest.fixture(scope="module")
def built(base, pair, tmp_path_factory):
    """Built and verified by the command."""
    export_dir = tmp_path_factory.mktemp("swappable") / "out"
    table = {
        "base": str(base),
        "adapters": [{"name": name, "source": str(each)} for name, each in pair.items()],
        "output": str(export_dir),
        "mode": "swappable",
    }
    return merge_and_build(make_recipe(table, folder=Path("/")))


def test_latency_is_measured_where_it_is_asked_for(base, pair, built, tmp_path):
    assert built.reports.latency is None  # inputs cost something: no limit is right for all
    table = {
        "base": str(base),
        "adapters": [{"name": name, "source": str(each)} for name, each in pair.items()],
        "output": str(tmp_path / "out"),
        "mode": "swappable",
        "verify": {"enabled": False},
        "latency": {"max_ratio": 0.01, "rounds": 10, "length": 8},
    }
    outcome = merge_and_build(make_recipe(table, folder=Path("/")))
    assert outcome.reports.latency.graphs["swappable"].verdict == "fail"
    assert outcome.exit_code() == 6


@pytest.fixture
def export_dir(built, tmp_path):
    return shutil.copytree(built.output, tmp_path / "out")


def test_heads_of_two_widths_are_swapped_in_one_graph(built, base, pair):
    manifest = read_manifest(built.output)
    assert set(manifest.graphs) == {"base", "swappable"}
    assert manifest.graphs["swappable"].verification == "pass"
    with open_export(built.output) as session:
        for name, labels in (("mnli", 3), ("sst2", 2), ("mnli", 3)):
            expected = run_torch(peft_model(base, pair[name], TASK, labels_count=labels), FEEDS)
            assert expected.shape == (2, labels)
            found = session.run(FEEDS, adapter=name)["logits"]
            np.testing.assert_allclose(found, expected, **CLOSE)
            again = with_active_adapter(built.output, name)
            np.testing.assert_array_equal(again, found)
        bare = session.run(FEEDS)["logits"]
    np.testing.assert_allclose(bare, run_graph(built.output, "base", FEEDS), **CLOSE)


def test_the_report_tells_of_each_adapter_and_of_swapping(built):
    row = as_json(built.reports.parity.graphs["swappable"])
    assert row["verdict"] == "pass"
    assert row["base_bit_equal"] is True
    assert {name: each["verdict"] for name, each in row["adapters"].items()} == {
        "mnli": "pass",
        "sst2": "pass",
    }
    packs = {name: each.pack for name, each in read_manifest(built.output).adapters.items()}
    assert all(each.verification == "pass" and each.golden for each in packs.values())


def test_no_second_copy_of_the_base_is_written(built):
    sizes = {
        path.relative_to(built.output).as_posix(): path.stat().st_size
        for path in built.output.rglob("*.safetensors")
    }
    whole = sizes.pop("weights/base.safetensors")
    assert set(sizes) == {"adapters/mnli.safetensors", "adapters/sst2.safetensors"}
    assert sum(sizes.values()) < whole / 4


@pytest.mark.parametrize(
    ("kind", "task", "settings"),
    [
        ("bert", TASK, {"use_dora": True, "target_modules": ["query", "dense"]}),
        ("bert", TASK, {"bias": "all"}),
        ("bert", TASK, {"bias": "lora_only", "target_modules": ["value", "word_embeddings"]}),
        ("bert", TASK, {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}}),
        ("gpt2", "text-generation", {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
        ("llama", "text-generation", {"target_modules": "all-linear"}),
    ],
    ids=["dora", "biases", "embedding", "patterns", "conv1d", "llama"],
)
def test_every_kind_of_update_is_swapped(tiny, tmp_path, kind, task, settings):
    base = tiny.base(kind, task)
    adapter = tiny.adapter(base, task=task, seed=51, **settings)
    export_dir = build(base, {"a": adapter}, tmp_path / "out", mode="swappable").output
    labels = 3 if task == TASK else None
    expected = run_torch(peft_model(base, adapter, task, labels_count=labels), FEEDS)
    manifest = read_manifest(export_dir)
    feeds = dict(FEEDS)
    if manifest.base.cache:
        feeds["position_ids"] = np.broadcast_to(np.arange(7), IDS.shape).copy()
        config = peft_model(base, adapter, task).config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        for each in open_export(export_dir).inputs:
            if each.name.startswith("past_"):
                width = config.hidden_size // config.num_attention_heads
                feeds[each.name] = np.zeros((2, heads, 0, width), np.float32)
    else:
        feeds["token_type_ids"] = np.zeros_like(IDS)
    with open_export(export_dir) as session:
        found = session.run(feeds, adapter="a")["logits"]
        bare = session.run(feeds)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(bare, run_graph(export_dir, "base", feeds))
    assert not np.allclose(found, bare, rtol=1e-3, atol=1e-4)


def test_a_half_precision_graph_takes_packs_of_its_dtype(tiny, tmp_path):
    base = tiny.base("bert", TASK, dtype="float16")
    adapter = tiny.adapter(base, seed=52)
    outcome = build(
        base, {"a": adapter}, tmp_path / "out", mode="swappable", verify={"enabled": True}
    )
    assert outcome.manifest.graphs["swappable"].verification == "pass"
    tensors = load_file(outcome.output / "adapters" / "a.safetensors")
    assert {str(each.dtype) for each in tensors.values()} == {"float16"}


def test_a_base_without_the_head_takes_it_from_each_adapter(tiny, tmp_path):
    bare = tiny.base("roberta", "feature-extraction")
    adapters = {
        name: tiny.adapter(bare, seed=seed, labels_count=labels, modules_to_save=["classifier"])
        for name, seed, labels in (("two", 5, 2), ("three", 6, 3))
    }
    outcome = build(
        bare, adapters, tmp_path / "out", mode="swappable", task=TASK, verify={"enabled": True}
    )
    row = as_json(outcome.reports.parity.graphs["swappable"])
    assert row["verdict"] == "pass", row
    with open_export(outcome.output) as session:
        assert session.run(FEEDS, adapter="two")["logits"].shape == (2, 2)
        with pytest.raises(UnsupportedError, match="only adapters bring"):
            session.run(FEEDS)


def test_add_writes_a_pack_and_touches_nothing_else(export_dir, tiny, base):
    before = file_hashes(export_dir)
    adapter = tiny.adapter(base, seed=43, labels_count=5, r=2)
    add(export_dir, [spec("new", adapter)])
    after = file_hashes(export_dir)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        "lora_export.json",
        "adapters/new.safetensors",
        "adapters/new.onnx_adapter",
        "hf/new/config.json",
        "reports/report.html",
        "reports/report.md",
    }
    with open_export(export_dir) as session:
        found = session.run(FEEDS, adapter="new")["logits"]
    expected = run_torch(peft_model(base, adapter, TASK, labels_count=5), FEEDS)
    np.testing.assert_allclose(found, expected, **CLOSE)
    remove(export_dir, "new")
    assert file_hashes(export_dir).keys() == before.keys()
    assert {n for n, h in file_hashes(export_dir).items() if h != before[n]} <= {"lora_export.json"}


def test_add_refuses_what_the_graph_has_no_input_for(export_dir, tiny, base):
    before = file_hashes(export_dir)
    adapter = tiny.adapter(base, seed=44, target_modules=["query", "dense"])
    with pytest.raises(UnsupportedError, match=r"dense\.lora_A\.weight") as caught:
        add(export_dir, [spec("wide", adapter)])
    assert "merge-and-build" in (caught.value.hint or "")
    assert file_hashes(export_dir) == before


def test_named_modules_leave_room_for_later_adapters(tiny, base, tmp_path):
    table = {
        "base": str(base),
        "output": str(tmp_path / "out"),
        "mode": "swappable",
        "lora_modules": ["query", "dense"],
        "verify": {"enabled": False},
        "latency": {"enabled": False},
    }
    export_dir = merge_and_build(make_recipe(table, folder=Path("/"))).output
    with pytest.raises(UnsupportedError, match="classifier"):
        add(export_dir, [spec("head", tiny.adapter(base, seed=46))])
    wide = tiny.adapter(base, seed=45, target_modules=["query", "intermediate.dense"])
    later = AdapterSpec(name="later", source=str(wide), drop=["*classifier*"])
    add(export_dir, [later])
    merged = build(
        base, {"later": {"source": str(wide), "drop": ["*classifier*"]}}, tmp_path / "merged"
    ).output
    with open_export(export_dir) as session:
        found = session.run(FEEDS, adapter="later")["logits"]
    np.testing.assert_allclose(found, run_graph(merged, "later", FEEDS), **CLOSE)
    assert not np.allclose(found, run_graph(merged, "base", FEEDS), **CLOSE)


def test_verify_finds_a_pack_that_computes_something_else(export_dir, base):
    assert verify(export_dir, base=base).exit_code() == 0
    assert verify(export_dir).exit_code() == 0  # against its golden outputs
    path = export_dir / "adapters" / "sst2.safetensors"
    tensors = load_file(path)
    name = next(each for each in sorted(tensors) if each.endswith("lora_B.weight"))
    metadata = {"base_fingerprint": read_manifest(export_dir).base.fingerprint}
    save_file({**tensors, name: tensors[name] * np.float32(1.5)}, path, metadata)
    manifest = manifest_of(export_dir)
    manifest["files"]["adapters/sst2.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (export_dir / "lora_export.json").write_text(json.dumps(manifest))
    outcome = verify(export_dir, base=base)
    row = as_json(outcome.reports.parity.graphs["swappable"])
    assert outcome.exit_code() == 5
    assert row["adapters"]["sst2"]["verdict"] == "fail"
    assert row["adapters"]["mnli"]["verdict"] == "pass"
    assert verify(export_dir).exit_code() == 5


def test_a_pack_of_another_base_is_refused(export_dir):
    path = export_dir / "adapters" / "sst2.safetensors"
    save_file(load_file(path), path, {"base_fingerprint": "0" * 64})
    manifest = manifest_of(export_dir)
    manifest["files"]["adapters/sst2.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (export_dir / "lora_export.json").write_text(json.dumps(manifest))
    with open_export(export_dir) as session, pytest.raises(AdapterError, match="another base"):
        session.run(FEEDS, adapter="sst2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "merged", "lora_modules": ["query"]}, "--lora-modules"),
        ({"mode": "swappable", "adapters": []}, "adapters"),
        ({"mode": "swappable", "lora_modules": ["nowhere"]}, "nowhere"),
    ],
)
def test_settings_that_mean_nothing_are_refused(base, pair, tmp_path, change, message):
    adapters = {} if change.get("adapters") == [] else pair
    settings = {key: value for key, value in change.items() if key != "adapters"}
    with pytest.raises(UsageError, match=message):
        build(base, adapters, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_an_export_keeps_its_mode(export_dir, base, pair, tmp_path, capsys):
    result = call(
        capsys, "merge-and-build", "--base", base, "--adapter", f"more={pair['mnli']}",
        "--out", export_dir, "--no-verify",
    )  # fmt: skip
    assert result.code == 3
    assert "another mode: swappable, not merged" in result.message


def test_the_command_line_builds_adds_and_runs_without_torch(base, pair, tmp_path, capsys):
    export_dir = tmp_path / "out"
    built = call(
        capsys, "merge-and-build", "--base", base, "--adapter", f"mnli={pair['mnli']}",
        "--mode", "swappable", "--no-verify", "--no-latency", "--out", export_dir, "--json",
    )  # fmt: skip
    assert built.code == 0, built.err
    added = command("add", export_dir, "--adapter", f"sst2={pair['sst2']}", without=HEAVY)
    assert added.code == 0, added.err
    assert "sst2: adapters/sst2.onnx_adapter" in added.out
    found = with_active_adapter(export_dir, "sst2")
    expected = run_torch(peft_model(base, pair["sst2"], TASK, labels_count=2), FEEDS)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_text_is_generated_with_an_adapter_of_the_swappable_graph(tiny, tmp_path, capsys):
    base = tiny.base("gpt2", "text-generation")
    adapter = tiny.adapter(base, task="text-generation", seed=53, strength=1.0)
    one = build(base, {"a": adapter}, tmp_path / "merged").output
    two = build(base, {"a": adapter}, tmp_path / "swappable", mode="swappable").output
    from tests.helpers.models import save_tiny_tokenizer

    texts = {}
    for export_dir in (one, two):
        if not (export_dir / "hf" / "tokenizer.json").exists():
            save_tiny_tokenizer(export_dir / "hf")
        for name in ("a", None):
            chosen = ("--adapter", name) if name else ()
            found = call(capsys, "generate", export_dir, *chosen, "--prompt", "the cat",
                         "--max-new-tokens", 8, "--json")  # fmt: skip
            assert found.code == 0, found.err
            texts[export_dir.name, name] = found.document
    assert texts["merged", "a"] == texts["swappable", "a"]
    assert texts["merged", None] == texts["swappable", None]
    assert texts["merged", "a"] != texts["merged", None]
    pack = export_dir / "adapters" / "a.safetensors"
    data = bytearray(pack.read_bytes())
    data[-3] ^= 1
    pack.write_bytes(data)
    found = call(capsys, "generate", export_dir, "--adapter", "a", "--prompt", "the cat")
    assert found.code == 3
    assert "adapters/a.safetensors" in found.message
