"""The whole way by the command line: build, verify, measure; the reports against other oracles."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from lora_export.verification.inputs.random_inputs import make_cases
from tests.cli.exports import (
    Array,
    assert_intact,
    manifest_of,
    peft_model,
    report,
    run_graph,
    run_torch,
    scale_tensor,
)
from tests.cli.running import Result, call, command, snapshot, stagings
from tests.helpers.interfaces import reading

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TASK = "text-classification"
ADAPTERS = ("first", "second")


class Built(NamedTuple):
    base: Path
    adapters: dict[str, Path]
    out: Path
    result: Result


@pytest.fixture(scope="module")
def built(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return a base with a head and two adapters, built and verified in a process of its own."""
    base = tiny.base("bert", TASK, tokenizer=True)
    adapters = {
        "first": tiny.adapter(base, r=4, seed=1),
        "second": tiny.adapter(base, r=8, alpha=4, seed=2, bias="lora_only", use_rslora=True),
    }
    out = tmp_path_factory.mktemp("built") / "out"
    given = [f"--adapter={name}={path}" for name, path in adapters.items()]
    result = command(
        "merge-and-build", "--base", base, *given, "--task", TASK,
        "--labels", "red,green,blue", "--max-ratio", 50, "--json", "--out", out,
    )  # fmt: skip
    return Built(base, adapters, out, result)


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Path:
    """Return a copy of the export, to be changed."""
    shutil.copytree(built.out, tmp_path / "copy")
    return tmp_path / "copy"


def test_build_succeeds_and_prints_one_json_document(built: Built) -> None:
    assert built.result.code == 0, built.result.err
    document = built.result.document
    assert document["output"] == str(built.out)
    assert set(document["adapters"]) == set(ADAPTERS)
    assert {n: g["verification"] for n, g in document["graphs"].items()} == {
        "base": "pass", "first": "pass", "second": "pass",
    }  # fmt: skip
    assert "error" not in built.result.err
    assert "Traceback" not in built.result.err
    assert "Warning" not in built.result.err


def test_build_leaves_exactly_the_files_of_the_design(built: Built) -> None:
    assert set(snapshot(built.out)) == {
        "lora_export.json",
        "base.onnx",
        "first.onnx",
        "second.onnx",
        "weights/base.safetensors",
        "weights/first.safetensors",
        "weights/second.safetensors",
        "hf/config.json",
        "hf/tokenizer.json",
        "golden/base.npz",
        "golden/first.npz",
        "golden/second.npz",
        "reports/parity.json",
        "reports/latency.json",
        "reports/report.html",
        "reports/report.md",
    }
    assert stagings(built.out.parent) == []


def test_every_file_is_hashed_in_the_manifest(built: Built) -> None:
    assert_intact(built.out)


def test_manifest_says_what_was_built(built: Built) -> None:
    manifest = manifest_of(built.out)
    assert manifest["format_version"] == 1
    assert manifest["base"]["model_type"] == "bert"
    assert manifest["base"]["model_class"] == "BertForSequenceClassification"
    assert manifest["base"]["task"] == TASK
    assert manifest["base"]["dtype"] == "float32"
    assert manifest["base"]["labels"] == ["red", "green", "blue"]
    assert {n: g["mode"] for n, g in manifest["graphs"].items()} == {
        "base": "base", "first": "merged", "second": "merged",
    }  # fmt: skip
    first, second = (manifest["adapters"][name] for name in ADAPTERS)
    assert (first["rank"], second["rank"]) == (4, 8)
    for row in (first, second):
        assert row["format"] == "peft"
        assert row["merged_from"] == "checkpoint"
        assert row["tensors_applied"] == row["tensors_total"] > 0
        assert row["missing_in_base"] == []
    companion = json.loads((built.out / "hf" / "config.json").read_text())
    assert companion["id2label"] == {"0": "red", "1": "green", "2": "blue"}


def test_adapters_share_the_base_file_and_hold_only_what_changed(built: Built) -> None:
    manifest = manifest_of(built.out)
    for name in ADAPTERS:
        assert manifest["graphs"][name]["weights"] == [
            "weights/base.safetensors",
            f"weights/{name}.safetensors",
        ]
    sizes = {name: len(data) for name, data in snapshot(built.out).items()}
    assert sizes["weights/first.safetensors"] < sizes["weights/base.safetensors"] / 2


def test_graphs_and_weights_name_no_place_on_this_machine(built: Built) -> None:
    for name, data in snapshot(built.out).items():
        if name.endswith((".onnx", ".safetensors", ".npz")):
            assert str(built.base.parent).encode() not in data, name
            assert b"/home/" not in data, name


def cases_of(built: Built) -> tuple[list[dict[str, Array]], list[Array]]:
    """Return the inputs of the verification, seed 0."""
    config = json.loads((built.base / "config.json").read_text())
    signature = reading("input_ids", "attention_mask", "token_type_ids")
    cases = make_cases(config, signature, seed=0, left_padding=False)
    assert len({case.mask.shape for case in cases}) >= 4
    assert any(not case.mask.all() for case in cases)
    return [dict(case.feeds) for case in cases], [case.mask for case in cases]


def log_softmax(values: Array) -> Array:
    return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)))


@pytest.mark.parametrize("name", ADAPTERS)
def test_parity_report_agrees_with_figures_computed_here(built: Built, name: str) -> None:
    """All of the row's figures, from PEFT and ONNX Runtime run by this test."""
    row = report(built.out, "parity")["graphs"][name]
    feeds, _ = cases_of(built)
    model = peft_model(built.base, built.adapters[name], TASK)
    expected = np.concatenate([run_torch(model, each) for each in feeds]).astype(np.float64)
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = dict.fromkeys(module.scaling, 0.0)
    plain = np.concatenate([run_torch(model, each) for each in feeds]).astype(np.float64)
    actual = np.concatenate([run_graph(built.out, name, each) for each in feeds])
    actual = actual.astype(np.float64)
    norm = np.linalg.norm
    metrics = row["metrics"]
    assert row["verdict"] == "pass"
    assert row["tolerance"] == 1e-5
    assert row["effect"] == pytest.approx(norm(expected - plain) / norm(expected), rel=1e-3)
    assert row["effect"] > 1e-3
    assert metrics["rows"] == len(expected)
    assert metrics["finite"] is True
    assert metrics["relative_l2"] < 1e-5
    assert metrics["relative_l2"] == pytest.approx(
        norm(actual - expected) / norm(expected), rel=0.5, abs=1e-7
    )
    assert metrics["max_abs"] == pytest.approx(abs(actual - expected).max(), rel=0.5, abs=1e-6)
    cosine = (actual * expected).sum() / norm(actual) / norm(expected)
    assert metrics["cosine"] == pytest.approx(cosine, abs=1e-9)
    agreement = (actual.argmax(-1) == expected.argmax(-1)).mean()
    assert metrics["top1_agreement"] == agreement
    p, q = log_softmax(expected), log_softmax(actual)
    assert metrics["mean_kl"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), abs=1e-9)


def test_parity_report_of_the_base_has_no_effect(built: Built) -> None:
    row = report(built.out, "parity")["graphs"]["base"]
    assert row["verdict"] == "pass"
    assert row["effect"] is None
    assert row["metrics"]["relative_l2"] < 1e-5


def test_latency_report_holds_ratio_and_interval(built: Built) -> None:
    table = report(built.out, "latency")
    assert set(table["graphs"]) == set(ADAPTERS)
    assert table["environment"]["processors"] >= 1
    for row in table["graphs"].values():
        low, high = row["ratio_interval"]
        assert 0 < low <= row["ratio"] <= high
        assert row["confidence"] == 0.95
        assert row["verdict"] == "pass"
        assert row["max_ratio"] == 50
        assert row["rounds"] >= 100
        assert 0 < row["median_ms"] <= row["p90_ms"]
        assert 0 < row["base_median_ms"] <= row["base_p90_ms"]


def test_printed_reports_are_the_written_ones(built: Built) -> None:
    printed = built.result.document["reports"]
    for name in ("parity", "latency"):
        assert printed[name]["graphs"] == report(built.out, name)["graphs"]


@pytest.mark.parametrize("name", ["base", *ADAPTERS])
def test_golden_outputs_are_those_of_torch(built: Built, name: str) -> None:
    with np.load(built.out / "golden" / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    if name == "base":
        from tests.helpers.models import load_tiny

        model = load_tiny(built.base, TASK)
    else:
        model = peft_model(built.base, built.adapters[name], TASK)
    count = sum(key.endswith(".expected") for key in arrays)
    assert count >= 2
    for index in range(count):
        start = f"{index}.input."
        feeds = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        expected = arrays[f"{index}.expected"]
        assert np.allclose(run_torch(model, feeds), expected, atol=1e-6)
        assert np.allclose(run_graph(built.out, name, feeds), expected, atol=1e-5)


def test_export_works_from_another_place(built: Built, copied: Path, monkeypatch) -> None:
    monkeypatch.chdir("/")
    feeds, _ = cases_of(built)
    assert np.array_equal(
        run_graph(copied, "first", feeds[0]), run_graph(built.out, "first", feeds[0])
    )


def test_second_build_has_the_same_bytes(built: Built, tmp_path: Path, capsys) -> None:
    out = tmp_path / "again"
    given = [f"--adapter={name}={path}" for name, path in built.adapters.items()]
    result = call(capsys, "export", "--base", built.base, *given, "--task", TASK,
                  "--labels", "red,green,blue", "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    before, after = snapshot(built.out), snapshot(out)
    assert set(before) - set(after) == {
        "golden/base.npz", "golden/first.npz", "golden/second.npz",
        "reports/parity.json", "reports/latency.json", "reports/report.html", "reports/report.md",
    }  # fmt: skip
    del after["lora_export.json"]
    assert [name for name in after if after[name] != before[name]] == []


# ------------------------------------------------------------------------------------- verify


def test_verify_against_golden(copied: Path, capsys) -> None:
    result = call(capsys, "verify", copied, "--json")
    assert result.code == 0, result.err
    rows = result.document["reports"]["parity"]["graphs"]
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "base": "pass", "first": "pass", "second": "pass",
    }  # fmt: skip
    assert {row["against"] for row in rows.values()} == {"golden outputs"}
    assert_intact(copied)


def test_verify_against_golden_needs_no_torch(copied: Path) -> None:
    result = command("verify", copied, "--json", without=("torch", "transformers", "peft"))
    assert result.code == 0, result.err
    assert result.document["reports"]["parity"]["graphs"]["first"]["verdict"] == "pass"


def test_verify_against_torch(built: Built, copied: Path, capsys) -> None:
    result = call(capsys, "verify", copied, "--base", built.base, "--seed", 7, "--json")
    assert result.code == 0, result.err
    rows = result.document["reports"]["parity"]["graphs"]
    assert {row["verdict"] for row in rows.values()} == {"pass"}
    assert rows["first"]["against"].startswith("PEFT")
    assert rows["base"]["against"].startswith("transformers")
    assert_intact(copied)


def test_verify_of_a_damaged_weight_is_bad_input(copied: Path, capsys) -> None:
    path = copied / "weights" / "first.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    before = snapshot(copied)
    result = call(capsys, "verify", copied)
    assert result.code == 3
    assert "weights/first.safetensors" in result.message
    assert snapshot(copied) == before


@pytest.mark.parametrize(
    "file", ["base.onnx", "weights/base.safetensors", "golden/second.npz", "hf/config.json"]
)
def test_verify_of_a_missing_file_is_bad_input(copied: Path, capsys, file: str) -> None:
    (copied / file).unlink()
    result = call(capsys, "verify", copied)
    assert result.code == 3
    assert file in result.message


@pytest.mark.parametrize("with_base", [True, False], ids=["torch", "golden"])
@pytest.mark.parametrize("name", ["first", "second"])
def test_wrong_merge_is_found(built: Built, copied: Path, capsys, with_base, name) -> None:
    """A weight a hundredth too large, its hash corrected: only the outputs tell."""
    scale_tensor(copied, f"weights/{name}.safetensors", 1.01, containing="attention")
    against = ("--base", built.base) if with_base else ()
    result = call(capsys, "verify", copied, *against, "--json")
    assert result.code == 5, result.err
    rows = result.document["reports"]["parity"]["graphs"]
    other = "second" if name == "first" else "first"
    assert (rows[name]["verdict"], rows[other]["verdict"]) == ("fail", "pass")
    assert rows[name]["metrics"]["relative_l2"] > 1e-5
    assert manifest_of(copied)["graphs"][name]["verification"] == "fail"
    assert report(copied, "parity")["graphs"][name]["verdict"] == "fail"


def test_failed_verification_says_so_to_a_person(copied: Path, capsys) -> None:
    scale_tensor(copied, "weights/first.safetensors", 1.5, containing="attention")
    result = call(capsys, "verify", copied)
    assert result.code == 5
    assert "parity of first: fail" in result.out


def test_verify_with_another_base_is_bad_input(tiny: TinyModels, copied: Path, capsys) -> None:
    other = tiny.base("bert", TASK, seed=5)
    before = snapshot(copied)
    result = call(capsys, "verify", copied, "--base", other)
    assert result.code == 3
    assert "fingerprint" in result.message
    assert snapshot(copied) == before


def test_verify_with_another_adapter_is_bad_input(built: Built, copied: Path, capsys) -> None:
    other = built.adapters["second"]
    result = call(capsys, "verify", copied, "--base", built.base, "--adapter", f"first={other}")
    assert result.code == 3
    assert "'first'" in result.message


def test_verify_finds_an_adapter_that_has_moved(built: Built, tmp_path: Path, capsys) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(built.adapters["first"], adapter)
    built_now = call(capsys, "export", "--base", built.base, "--adapter", f"a={adapter}",
                     "--task", TASK, "--out", out)  # fmt: skip
    assert built_now.code == 0, built_now.err
    adapter.rename(tmp_path / "elsewhere")
    lost = call(capsys, "verify", out, "--base", built.base)
    assert lost.code == 3
    assert "--adapter a=" in lost.message
    found = call(
        capsys, "verify", out, "--base", built.base, "--adapter", f"a={tmp_path}/elsewhere"
    )
    assert found.code == 0, found.err


# ------------------------------------------------------------------------------------ recipes


def write_recipe(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_recipe_paths_are_relative_to_it_and_flags_win(built, tmp_path, capsys, monkeypatch):
    """Run from elsewhere; the recipe's output, opset and gate are overruled on the command line."""
    folder = tmp_path / "work" / "recipe"
    shutil.copytree(built.base, tmp_path / "work" / "base")
    shutil.copytree(built.adapters["first"], folder / "adapter")
    recipe = write_recipe(
        folder,
        "base: ../base\nadapters:\n  - {name: mine, source: adapter, labels: [a, b, c]}\n"
        f"task: {TASK}\nmode: merged\nlatency: {{max_ratio: 0.0001, rounds: 10, length: 8}}\n"
        "output: ../from-recipe\n",
    )
    monkeypatch.chdir(tmp_path)
    result = call(capsys, "merge-and-build", recipe, "--out", "from-flag", "--max-ratio", 90,
                  "--json")  # fmt: skip
    assert result.code == 0, result.err
    assert not (tmp_path / "work" / "from-recipe").exists()
    out = tmp_path / "from-flag"
    assert manifest_of(out)["adapters"]["mine"]["labels"] == ["a", "b", "c"]
    row = report(out, "latency")["graphs"]["mine"]
    assert (row["max_ratio"], row["rounds"], row["length"]) == (90, 10, 8)
    weights = snapshot(out)["weights/mine.safetensors"]
    assert weights[-4096:] == snapshot(built.out)["weights/first.safetensors"][-4096:]


def test_recipe_alone_builds_where_it_says(built, tmp_path, capsys, monkeypatch) -> None:
    recipe = write_recipe(
        tmp_path / "recipe",
        f"base: {built.base}\nadapters: [{{name: mine, source: {built.adapters['first']}}}]\n"
        f"task: {TASK}\nverify: {{enabled: false}}\nlatency: {{enabled: false}}\n"
        "output: ../out\n",
    )
    monkeypatch.chdir("/")
    result = call(capsys, "merge-and-build", recipe)
    assert result.code == 0, result.err
    assert_intact(tmp_path / "out")
    assert not (tmp_path / "out" / "reports").exists()
    assert manifest_of(tmp_path / "out")["graphs"]["mine"]["verification"] == "unverified"


def test_adapter_flags_replace_the_recipe_s_adapters(built, tmp_path, capsys) -> None:
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\nadapters: [{{name: mine, source: /nowhere}}]\noutput: out\n",
    )
    flag = f"other={built.adapters['first']}"
    result = call(capsys, "export", recipe, "--adapter", flag, "--task", TASK)
    assert result.code == 0, result.err
    assert list(manifest_of(tmp_path / "out")["adapters"]) == ["other"]


def test_drop_flag_reaches_the_recipe_s_adapters(built, tmp_path, capsys) -> None:
    """A flag wins over the recipe; a flag that does nothing would be a silent surprise."""
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\nadapters: [{{name: mine, source: {built.adapters['first']}}}]\n"
        "output: out\n",
    )
    result = call(capsys, "export", recipe, "--task", "feature-extraction", "--drop", "classifier*")
    assert result.code == 0, result.err
    assert manifest_of(tmp_path / "out")["adapters"]["mine"]["dropped"]


def test_labels_flag_wins_over_the_recipe_s(built, tmp_path, capsys) -> None:
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\noutput: out\ntask: {TASK}\nadapters:\n"
        f"  - {{name: mine, source: {built.adapters['first']}, labels: [a, b, c]}}\n",
    )
    result = call(capsys, "export", recipe, "--labels", "x,y,z")
    assert result.code == 0, result.err
    assert manifest_of(tmp_path / "out")["adapters"]["mine"]["labels"] == ["x", "y", "z"]


def dataset_of(built: Built, path: Path, *, wrong: int = 0) -> list[int]:
    """Write a data set whose labels are PEFT's own predictions, the first `wrong` ones moved on."""
    import tokenizers

    random = np.random.default_rng(3)
    texts = [
        " ".join(f"w{i}" for i in random.integers(3, 200, int(random.integers(2, 20))))
        for _ in range(40)
    ]
    tokenizer = tokenizers.Tokenizer.from_file(str(built.base / "tokenizer.json"))
    model = peft_model(built.base, built.adapters["first"], TASK)
    predicted = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        predicted.append(int(run_torch(model, feeds).argmax()))
    names = ["red", "green", "blue"]
    labels = [(p + (i < wrong)) % 3 for i, p in enumerate(predicted)]
    rows = [
        {"text": text, "label": names[label] if i % 2 else label}
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return predicted


def test_dataset_of_a_recipe_repeats_the_accuracy(built: Built, tmp_path: Path, capsys) -> None:
    predicted = dataset_of(built, tmp_path / "heldout.jsonl", wrong=10)
    assert len(set(predicted)) > 1
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\nadapters: [{{name: first, source: {built.adapters['first']}}}]\n"
        f"task: {TASK}\nlabels: [red, green, blue]\noutput: out\n"
        "verify: {dataset: heldout.jsonl, metric: accuracy}\nlatency: {enabled: false}\n",
    )
    result = call(capsys, "merge-and-build", recipe)
    assert result.code == 0, result.err
    row = report(tmp_path / "out", "parity")["graphs"]["first"]["dataset"]
    assert row["count"] == 40
    assert row["graph"] == row["reference"] == 0.75
    assert row["disagreements"] == 0
    assert "0.7500" in result.out


def test_verify_looks_at_a_dataset_before_it_begins(built, tmp_path, capsys) -> None:
    result = call(
        capsys, "verify", built.out, "--base", built.base, "--dataset", tmp_path / "none.jsonl"
    )
    assert (result.code, result.out) == (3, "")
    assert "cannot read the data set" in result.err
    assert "parity of" not in result.err


def test_verify_with_a_dataset_finds_changed_predictions(built, copied, tmp_path, capsys) -> None:
    dataset_of(built, tmp_path / "heldout.jsonl")
    scale_tensor(copied, "weights/first.safetensors", -1.0, containing="classifier.weight")
    result = call(
        capsys, "verify", copied, "--base", built.base, "--dataset", tmp_path / "heldout.jsonl",
        "--json",
    )  # fmt: skip
    assert result.code == 5
    row = result.document["reports"]["parity"]["graphs"]["first"]
    assert row["dataset"]["reference"] == 1.0
    assert row["dataset"]["graph"] < 1.0
    assert row["dataset"]["clear_disagreements"] == row["dataset"]["disagreements"] == 40
    assert len(row["dataset"]["differing"]) == 20  # the first of them


@pytest.mark.parametrize(
    "rows",
    ["", "{}\n", '{"text": "w3"}\n', "not json\n", '{"text": "w3", "label": "purple"}\n'],
)
def test_damaged_dataset_is_bad_input_and_leaves_nothing(built, tmp_path, capsys, rows) -> None:
    (tmp_path / "data.jsonl").write_text(rows)
    recipe = write_recipe(
        tmp_path / "recipe",
        f"base: {built.base}\nadapters: [{{name: first, source: {built.adapters['first']}}}]\n"
        f"task: {TASK}\nlabels: [red, green, blue]\noutput: ../parent/out\n"
        "verify: {dataset: ../data.jsonl}\nlatency: {enabled: false}\n",
    )
    result = call(capsys, "merge-and-build", recipe)
    assert result.code == 3
    assert "data.jsonl" in result.message
    assert not (tmp_path / "parent" / "out").exists()
    assert stagings(tmp_path) == []


# -------------------------------------------------------------------------------------- gates


def gate(built: Built, tmp_path: Path, capsys, *flags: object) -> tuple[Path, Result]:
    out = tmp_path / "out"
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\nadapters: [{{name: first, source: {built.adapters['first']}}}]\n"
        f"task: {TASK}\noutput: out\nverify: {{enabled: false}}\n"
        "latency: {rounds: 10, length: 8}\n",
    )
    return out, call(capsys, "merge-and-build", recipe, *flags)


def test_latency_gate_fails_with_its_own_code_and_keeps_the_export(built, tmp_path, capsys):
    out, result = gate(built, tmp_path, capsys, "--max-ratio", 0.01)
    assert result.code == 6, result.err
    assert_intact(out)
    row = report(out, "latency")["graphs"]["first"]
    assert row["verdict"] == "fail"
    assert row["ratio_interval"][0] > 0.01
    assert "latency of first: fail" in result.out


@pytest.fixture
def noisy_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every measured time a draw from one wide distribution: no ratio can be told from 1."""
    random = np.random.default_rng(0)
    now = 0

    def tick() -> int:
        nonlocal now
        now += int(random.lognormal(14, 1.0))
        return now

    monkeypatch.setattr(time, "perf_counter_ns", tick)


@pytest.mark.usefixtures("noisy_clock")
@pytest.mark.parametrize("flags", [(), ("--strict",)], ids=["", "strict"])
def test_ambiguous_latency_is_said_and_strict_fails_it(built, tmp_path, capsys, flags) -> None:
    out, result = gate(built, tmp_path, capsys, "--max-ratio", 1.0, *flags)
    assert result.code == (6 if flags else 0), result.out
    row = report(out, "latency")["graphs"]["first"]
    assert row["verdict"] == "ambiguous"
    assert row["ratio_interval"][0] < 1.0 < row["ratio_interval"][1]
    assert "latency of first: ambiguous" in result.out
    assert "verified" not in result.out.replace("unverified", "")


def test_adapter_without_effect_fails_unless_allowed(built: Built, tiny, tmp_path, capsys) -> None:
    idle = tiny.adapter(built.base, strength=0.0, seed=9, modules_to_save=[])
    arguments = ("merge-and-build", "--base", built.base, "--adapter", f"idle={idle}",
                 "--task", TASK, "--no-latency", "--json")  # fmt: skip
    failed = call(capsys, *arguments, "--out", tmp_path / "a")
    assert failed.code == 5, failed.err
    row = failed.document["reports"]["parity"]["graphs"]["idle"]
    assert row["verdict"] == "fail"
    assert "effect" in row["reason"]
    allowed = call(capsys, *arguments, "--out", tmp_path / "b", "--allow-no-effect")
    assert allowed.code == 0, allowed.err


def test_no_verify_skips_reports_and_says_unverified(built: Built, tmp_path, capsys) -> None:
    result = call(capsys, "merge-and-build", "--base", built.base, "--task", TASK,
                  "--adapter", f"a={built.adapters['first']}", "--no-verify",
                  "--out", tmp_path / "out")  # fmt: skip
    assert result.code == 0, result.err
    assert not (tmp_path / "out" / "reports").exists()
    assert not (tmp_path / "out" / "golden").exists()
    assert "unverified" in result.out
