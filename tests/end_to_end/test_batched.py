"""``--mode batched`` from end to end: a batch of different adapters, against PEFT row by row."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from lora_export.commands.add import add
from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import make_recipe
from lora_export.commands.remove import remove
from lora_export.commands.verify import verify
from lora_export.core import changes
from lora_export.core import journal as waiting_files
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.journal import WAITING
from lora_export.core.manifest import read_manifest
from lora_export.core.reports.report_model import as_json
from lora_export.runtime import open_export
from tests.cli.exports import peft_model, run_graph, run_torch
from tests.cli.running import HEAVY, call, command
from tests.helpers.builds import build, file_hashes, spec
from tests.helpers.models import save_tiny_tokenizer
from tests.helpers.slow import but_the_first

TASK = "text-classification"
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
LOWEST = np.finfo(np.float32).min


def feeds_of(rows: int, *, kind: str = "roberta", length: int = 7) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(3).integers(3, 200, (rows, length))
    mask = np.ones_like(ids)
    mask[::2, 5:] = 0
    feeds = {"input_ids": ids, "attention_mask": mask}
    if kind == "bert":
        feeds["token_type_ids"] = np.zeros_like(ids)
    return feeds


def by_onnxruntime(root: Path, feeds: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Run ``batched.onnx`` as any program would."""
    session = onnxruntime.InferenceSession(str(root / "batched.onnx"))
    return np.asarray(session.run(None, {**feeds, "adapter_ids": np.array(ids, np.int64)})[0])


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.base("roberta", TASK)


@pytest.fixture(scope="module")
def adapters(tiny, base):
    return {
        "mnli": tiny.adapter(base, seed=61, labels_count=3),
        "sst2": tiny.adapter(base, seed=62, labels_count=2, r=7, use_rslora=True),
        "five": tiny.adapter(base, seed=63, labels_count=5, r=2, target_modules=["key", "dense"]),
    }


LABELS = {"mnli": 3, "sst2": 2, "five": 5, None: 3}


@pytest.fixture(scope="module")
def expected(base, adapters):
    """What PEFT gives for each adapter, and the base's own graph, for eight rows."""
    return {
        name: run_torch(peft_model(base, each, TASK, labels_count=LABELS[name]), feeds_of(8))
        for name, each in adapters.items()
    }


@pytest.fixture(scope="module")
def built(base, adapters, tmp_path_factory):
    table = {
        "base": str(base),
        "adapters": [{"name": name, "source": str(each)} for name, each in adapters.items()],
        "output": str(tmp_path_factory.mktemp("batched") / "out"),
        "mode": "batched",
    }
    return merge_and_build(make_recipe(table, folder=Path("/")))


@pytest.fixture
def root(built, tmp_path):
    return shutil.copytree(built.output, tmp_path / "out")


def assert_rows(root: Path, expected: dict[Any, np.ndarray], names: list[str | None]) -> None:
    feeds = feeds_of(len(names))
    expected = {**expected, None: run_graph(root, "base", feeds)}
    with open_export(root) as session:
        found = session.run(feeds, adapter_ids=names)["logits"]
    for row, name in enumerate(names):
        width = LABELS[name]
        np.testing.assert_allclose(found[row, :width], expected[name][row], **CLOSE)
        assert (found[row, width:] == LOWEST).all()


def test_every_row_of_a_mixed_batch_is_what_peft_gives(built, expected):
    mixed: list[str | None] = ["mnli", None, "five", "sst2", "sst2", "mnli", None, "five"]
    assert_rows(built.output, expected, mixed)


def test_heads_of_other_widths_are_padded_and_masked(built, expected):
    found = by_onnxruntime(built.output, feeds_of(8), [2] * 8)
    assert found.shape == (8, 5)
    np.testing.assert_allclose(found[:, :2], expected["sst2"], **CLOSE)
    assert (found[:, 2:] == LOWEST).all()
    shifted = np.exp(found - found.max(-1, keepdims=True))
    assert (shifted[:, 2:] == 0).all()


def test_the_verification_covers_every_row_and_their_mixing(built):
    row = as_json(built.reports.parity.graphs["batched"])
    assert row["verdict"] == "pass", row
    assert row["mixed_relative_l2"] < 1e-5
    assert {each["verdict"] for each in row["adapters"].values()} == {"pass"}
    rows = {name: each.row for name, each in built.manifest.adapters.items()}
    assert {name: each.row for name, each in rows.items()} == {"mnli": 1, "sst2": 2, "five": 3}
    assert all(each.verification == "pass" and each.golden for each in rows.values())
    assert built.reports.latency is None  # no ratio was asked for


@pytest.mark.parametrize(
    ("kind", "task", "settings"),
    but_the_first(
        [
            ("bert", TASK, {"use_dora": True, "target_modules": ["query", "dense"]}),
            ("bert", TASK, {"bias": "all"}),
            ("bert", TASK, {"bias": "lora_only", "target_modules": ["value", "word_embeddings"]}),
            ("distilbert", TASK, {"target_modules": ["q_lin", "lin1"]}),
            ("bert", "token-classification", {}),
            ("gpt2", "text-generation", {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
            ("llama", "text-generation", {"target_modules": "all-linear"}),
            ("llama", TASK, {}),
        ]
    ),
    ids=["dora", "biases", "embedding", "distilbert", "tokens", "conv1d", "llama", "llama-score"],
)
def test_every_kind_of_update_is_a_row(tiny, tmp_path, kind, task, settings):
    base = tiny.base(kind, task)
    two = {name: tiny.adapter(base, task=task, seed=seed, r=rank, **settings)
           for name, seed, rank in (("a", 71, 4), ("b", 72, 6))}  # fmt: skip
    outcome = build(base, two, tmp_path / "out", mode="batched", verify={"enabled": True})
    row = as_json(outcome.reports.parity.graphs["batched"])
    assert row["verdict"] == "pass", row
    assert {each["verdict"] for each in row["adapters"].values()} == {"pass"}


def test_a_half_precision_graph_has_stacks_of_its_dtype(tiny, tmp_path):
    base = tiny.base("bert", TASK, dtype="float16")
    two = {
        "a": tiny.adapter(base, seed=1, strength=0.5),
        "b": tiny.adapter(base, seed=2, strength=0.5, labels_count=2),
    }
    outcome = build(base, two, tmp_path / "out", mode="batched", verify={"enabled": True})
    row = as_json(outcome.reports.parity.graphs["batched"])
    assert row["verdict"] == "pass", row
    found = by_onnxruntime(outcome.output, feeds_of(2, kind="bert"), [1, 2])
    assert found.dtype == np.float16
    assert np.isfinite(found).all()
    assert found[1, 2] == np.finfo(np.float16).min


def test_a_base_without_the_head_is_no_row(tiny, tmp_path):
    bare = tiny.base("roberta", "feature-extraction")
    two = {
        name: tiny.adapter(bare, seed=seed, labels_count=labels, modules_to_save=["classifier"])
        for name, seed, labels in (("two", 5, 2), ("three", 6, 3))
    }
    outcome = build(
        bare, two, tmp_path / "out", mode="batched", task=TASK, verify={"enabled": True}
    )
    assert outcome.reports.parity.graphs["batched"].verdict == "pass"
    with open_export(outcome.output) as session:
        session.run(feeds_of(2), adapter_ids=["two", "three"])
        with pytest.raises(UsageError, match="the base has no 'classifier"):
            session.run(feeds_of(2), adapter_ids=["two", None])
    remove(outcome.output, "two")
    remove(outcome.output, "three")
    manifest = read_manifest(outcome.output)
    assert manifest.graphs["batched"].weights == manifest.graphs["base"].weights
    assert verify(outcome.output).exit_code() == 0


def test_adapters_come_and_go_and_the_others_keep_their_rows(root, tiny, base, adapters, expected):
    before = file_hashes(root)
    wide = tiny.adapter(base, seed=64, r=9, target_modules=["query", "intermediate.dense"])
    new = {**expected, "new": run_torch(peft_model(base, wide, TASK, labels_count=3), feeds_of(8))}
    LABELS["new"] = 3
    add(root, [spec("new", wide)])
    assert_rows(root, new, ["new", "mnli", None, "five", "sst2", "new", "mnli", "five"])
    after = file_hashes(root)
    stack = {name for name in after if name.startswith("weights/batched-")}
    assert len(stack) == 1
    changed = {name for name in after if after[name] != before.get(name)}
    pages = {"reports/report.html", "reports/report.md"}
    assert changed == {"lora_export.json", "batched.onnx", *stack, *pages}
    remove(root, "sst2")
    rows = {name: each.row.row for name, each in read_manifest(root).adapters.items()}
    assert rows == {"mnli": 1, "five": 3, "new": 4}
    assert_rows(root, new, ["new", "mnli", None, "five", "five", "new", "mnli", "five"])
    base_logits = run_graph(root, "base", feeds_of(2))
    np.testing.assert_allclose(
        by_onnxruntime(root, feeds_of(2), [2, 2])[:, :3], base_logits, **CLOSE
    )
    add(root, [spec("sst2", adapters["sst2"])])  # the free row
    assert read_manifest(root).adapters["sst2"].row.row == 2
    assert_rows(root, new, ["sst2", "mnli", None, "five", "sst2", "new", "mnli", "five"])
    with pytest.raises(AdapterError, match="already holds"):
        add(root, [spec("sst2", adapters["mnli"])])
    assert verify(root, base=base).exit_code() == 0
    for name in ("sst2", "mnli", "five", "new"):
        remove(root, name)
    np.testing.assert_array_equal(by_onnxruntime(root, feeds_of(2), [0, 0]), base_logits)
    add(root, [spec("mnli", adapters["mnli"])])
    assert_rows(root, new, ["mnli", None])


@pytest.mark.parametrize("way", ["removed", "replaced"])
def test_an_adapter_takes_its_rank_its_layers_and_its_magnitudes_with_it(
    root, tiny, base, expected, way
):
    """What is left are the stacks of a row that is the base, byte for byte, and what PEFT says."""
    targets = ["query", "word_embeddings"]
    wide = tiny.adapter(
        base, seed=67, labels_count=2, r=16, target_modules=targets, use_dora=True, strength=1.0
    )
    small = tiny.adapter(base, seed=68, labels_count=2, r=2)
    add(root, [spec("new", small)])
    before = {name: sha for name, sha in file_hashes(root).items() if "batched" in name}
    shapes = stack_shapes(root)
    add(root, [spec("new", wide)], replace=True)
    held = stack_shapes(root)
    assert held["roberta.encoder.layer.0.attention.self.query.lora_A.stack"][-1] == 16
    assert {"roberta.embeddings.word_embeddings.lora_A.stack"} <= held.keys() - shapes.keys()
    assert any("magnitude" in name for name in held.keys() - shapes.keys())
    if way == "replaced":
        add(root, [spec("new", small)], replace=True)
        after = {name: sha for name, sha in file_hashes(root).items() if "batched" in name}
        assert after == before
        wanted = run_torch(peft_model(base, small, TASK, labels_count=2), feeds_of(8))
        found = by_onnxruntime(root, feeds_of(8), [4] * 8)
        np.testing.assert_allclose(found[:, :2], wanted, **CLOSE)
        assert_rows(root, expected, ["sst2", "mnli", None, "five"])
    else:
        remove(root, "new")
        rest = {name: (shape[0] - 1, *shape[1:]) for name, shape in shapes.items()}
        assert stack_shapes(root) == rest
        assert_rows(root, expected, ["sst2", "mnli", None, "five"])
    assert verify(root, base=base).exit_code() == 0


def stack_shapes(root: Path) -> dict[str, tuple[int, ...]]:
    (file,) = (root / "weights").glob("batched-*.safetensors")
    return {name: value.shape for name, value in load_file(file).items()}


def test_an_adapter_that_is_replaced_keeps_its_row(root, tiny, base, expected):
    other = tiny.adapter(base, seed=65, labels_count=3)
    add(root, [spec("mnli", other)], replace=True)
    assert read_manifest(root).adapters["mnli"].row.row == 1
    new = {
        **expected,
        "mnli": run_torch(peft_model(base, other, TASK, labels_count=3), feeds_of(8)),
    }
    assert_rows(root, new, ["mnli", None, "five", "sst2"])


def test_a_change_that_was_cut_short_is_finished_or_never_was(root, tiny, base, monkeypatch):
    """Between the manifest and the graph's last move, the old export or the new one is served."""
    new = tiny.adapter(base, seed=66)
    before = by_onnxruntime(root, feeds_of(2), [1, 2])
    monkeypatch.setattr(changes, "write_manifest", _killed)
    with pytest.raises(KeyboardInterrupt):
        add(root, [spec("new", new)])
    with open_export(root, check_hashes=True) as session:
        found = session.run(feeds_of(2), adapter_ids=[1, 2])["logits"]
        assert "new" not in session.adapters
    np.testing.assert_array_equal(found, before)
    monkeypatch.undo()
    monkeypatch.setattr(changes, "finish", _killed)
    with pytest.raises(KeyboardInterrupt):
        add(root, [spec("new", new)])
    monkeypatch.undo()
    assert (root / WAITING / "batched.onnx").is_file()
    with open_export(root, check_hashes=True) as session:
        found = session.run(feeds_of(2), adapter_ids=["new", "sst2"])["logits"]
    assert not (root / WAITING).exists()
    wanted = run_torch(peft_model(base, new, TASK, labels_count=3), feeds_of(2))
    np.testing.assert_allclose(found[0, :3], wanted[0], **CLOSE)
    assert verify(root).reports.parity.graphs["batched"].verdict != "fail"


def test_a_reader_that_finishes_a_change_beside_its_writer_does_no_harm(root, monkeypatch):
    """Between the look at the waiting graph and its move, another process moves it."""
    graph, waiting = root / "batched.onnx", root / WAITING / "batched.onnx"
    before = graph.read_bytes()
    waiting.parent.mkdir()
    graph.replace(waiting)
    hashed = waiting_files.sha256_of_file

    def then_moved(path: Path) -> str:
        found = hashed(path)
        if path == waiting:
            waiting.replace(graph)
        return found

    monkeypatch.setattr(waiting_files, "sha256_of_file", then_moved)
    read_manifest(root)
    assert graph.read_bytes() == before
    assert not waiting.parent.exists()


def test_what_a_killed_change_left_is_removed_by_the_next(root, tiny, base):
    stray = root / "weights" / "batched-0123456789ab.safetensors"
    stray.write_bytes(b"of a change whose process was killed")
    add(root, [spec("new", tiny.adapter(base, seed=66))])
    assert not stray.exists()
    remove(root, "new")
    golden = root / "golden" / "new.npz"
    for file in (stray, golden):
        file.write_bytes(b"of a removal whose process was killed")
    remove(root, "new")
    assert not stray.exists()
    assert not golden.exists()
    with pytest.raises(AdapterError, match="holds no adapter 'new'"):
        remove(root, "new")
    assert verify(root, base=base).exit_code() == 0


def test_a_head_is_updated_in_one_row_and_brought_by_another(tiny, tmp_path):
    task = "image-classification"
    base = tiny.base("vit", task)
    two = {
        "low": tiny.adapter(base, task=task, seed=81, target_modules=["q_proj", "classifier"]),
        "whole": tiny.adapter(
            base, task=task, seed=82, modules_to_save=["classifier"], labels_count=5
        ),
    }
    outcome = build(base, two, tmp_path / "out", mode="batched", verify={"enabled": True})
    row = as_json(outcome.reports.parity.graphs["batched"])
    assert row["verdict"] == "pass", row
    with pytest.raises(UnsupportedError, match=r"classifier\.weight.*\[5, 32\].*\[3, 32\]"):
        build(base, two, tmp_path / "swappable", mode="swappable")
    assert not (tmp_path / "swappable").exists()


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_rows_cannot_differ_in_is_refused_by_name(tiny, tmp_path):
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=3, modules_to_save=["classifier", "word_embeddings"])
    with pytest.raises(UnsupportedError, match="word_embeddings"):
        build(base, {"a": adapter}, tmp_path / "out", mode="batched")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="needs adapters"):
        build(base, {}, tmp_path / "out", mode="batched")


def test_the_command_line_adds_without_torch_and_gates_on_request(base, adapters, tmp_path, capsys):
    root = tmp_path / "out"
    built = call(
        capsys, "merge-and-build", "--base", base, "--adapter", f"mnli={adapters['mnli']}",
        "--mode", "batched", "--no-verify", "--out", root,
    )  # fmt: skip
    assert built.code == 0, built.err
    assert "batched.onnx row 1" in built.out
    added = command("add", root, "--adapter", f"sst2={adapters['sst2']}", without=HEAVY)
    assert added.code == 0, added.err
    assert "batched.onnx row 2" in added.out
    shown = call(capsys, "inspect", root)
    assert shown.code == 0, shown.err
    removed = command("remove", root, "mnli", without=HEAVY)
    assert removed.code == 0, removed.err
    assert set(read_manifest(root).adapters) == {"sst2"}
    gone = call(capsys, "remove", root, "mnli")
    assert gone.code == 3


def test_text_is_generated_with_a_row(tiny, tmp_path, capsys):
    base = tiny.base("gpt2", "text-generation")
    adapter = tiny.adapter(base, task="text-generation", seed=53, strength=1.0)
    texts = {}
    for mode in ("merged", "batched"):
        root = build(base, {"a": adapter}, tmp_path / mode, mode=mode).output
        if not (root / "hf" / "tokenizer.json").exists():
            save_tiny_tokenizer(root / "hf")
        found = call(capsys, "generate", root, "--adapter", "a", "--prompt", "the cat",
                     "--max-new-tokens", 8, "--json")  # fmt: skip
        assert found.code == 0, found.err
        texts[mode] = found.document
    assert texts["merged"] == texts["batched"]


def test_generate_finishes_a_change_that_was_cut_short(tiny, tmp_path, capsys):
    base = tiny.base("gpt2", "text-generation")
    one, two = (
        tiny.adapter(base, task="text-generation", seed=seed, strength=1.0) for seed in (53, 54)
    )
    root = build(base, {"a": one}, tmp_path / "out", mode="batched").output
    if not (root / "hf" / "tokenizer.json").exists():
        save_tiny_tokenizer(root / "hf")

    def told() -> Any:
        found = call(capsys, "generate", root, "--adapter", "a", "--prompt", "the cat",
                     "--max-new-tokens", 8, "--json")  # fmt: skip
        assert found.code == 0, found.err
        return found.document

    before, old = told(), (root / "batched.onnx").read_bytes()
    add(root, [spec("a", two)], replace=True)
    after = told()
    assert after != before
    (root / WAITING).mkdir()
    (root / "batched.onnx").replace(root / WAITING / "batched.onnx")
    (root / "batched.onnx").write_bytes(old)
    assert told() == after


def test_a_copy_of_the_bases_table_is_in_no_row_and_in_no_pack(tiny, tmp_path):
    """PEFT saves an embedding and a head whole beside their updates."""
    base = tiny.base("llama", "text-generation")
    modules = ["q_proj", "embed_tokens", "lm_head"]
    adapter = tiny.adapter(base, task="text-generation", seed=91, target_modules=modules)
    names = load_file(adapter / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names if "base_layer" in name} == {*modules[1:]}
    for mode in ("batched", "swappable"):
        outcome = build(base, {"a": adapter}, tmp_path / mode, mode=mode, verify={"enabled": True})
        assert outcome.reports.parity.graphs[mode].verdict == "pass"
        (file,) = (
            path
            for path in outcome.output.rglob("*.safetensors")
            if path.name != "base.safetensors"
        )
        assert not [name for name in load_file(file) if "lora_" not in name]
        assert outcome.manifest.adapters["a"].tensors_applied == len(names)
