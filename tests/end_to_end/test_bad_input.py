"""Bad input: exit code 3 or 4, one message that names the fault, and nothing left on disk."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.exports import assert_intact, manifest_of
from tests.cli.running import Result, call, command, snapshot, stagings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.models import TinyModels

TASK = "text-classification"
ADAPTER_FILE = "adapter_model.safetensors"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"


class Inputs(NamedTuple):
    """A copy of a base and of an adapter, to be spoiled, and where the export would go."""

    base: Path
    adapter: Path
    out: Path


@pytest.fixture
def inputs(tiny: TinyModels, tmp_path: Path) -> Inputs:
    base = tiny.base("bert", TASK)
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(tiny.adapter(base, seed=1), tmp_path / "adapter")
    (tmp_path / "parent").mkdir()
    return Inputs(tmp_path / "base", tmp_path / "adapter", tmp_path / "parent" / "out")


def build(capsys, inputs: Inputs, *flags: object, name: str = "mine") -> Result:
    return call(capsys, "export", "--base", inputs.base, "--adapter", f"{name}={inputs.adapter}",
                "--task", TASK, "--out", inputs.out, *flags)  # fmt: skip


def assert_refused(result: Result, inputs: Inputs, code: int, *words: str) -> None:
    """Require the code, one message with `words`, and nothing left on disk."""
    assert result.code == code, result.err
    for word in words:
        assert word in result.message
    assert len(result.message) < 1500
    assert not inputs.out.exists()
    assert list(inputs.out.parent.iterdir()) == []


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path, metadata={"format": "pt"})


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    changed = change(header)
    raw = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def poison(adapter: Path, target: Path, value: float) -> None:
    """Copy `adapter` with one number replaced."""
    shutil.copytree(adapter, target)

    def change(tensors):
        name = max(tensors, key=lambda n: ("lora_B" in n, n))
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = value

    edit_tensors(target / ADAPTER_FILE, change)


def test_good_input_is_accepted(inputs: Inputs, capsys) -> None:
    """The other tests mean something only if this one passes."""
    result = build(capsys, inputs)
    assert result.code == 0, result.err
    assert_intact(inputs.out)
    assert [path.name for path in inputs.out.parent.iterdir()] == ["out"]


# --------------------------------------------------------------------------- damaged files


def lie_shape(header):
    name = min(n for n in header if n != "__metadata__")
    header[name]["shape"][0] += 1


def lie_past_the_end(header):
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    header[name]["data_offsets"][1] += 4096
    header[name]["shape"] = [
        (header[name]["data_offsets"][1] - header[name]["data_offsets"][0]) // 4
    ]


def lie_overlap(header):
    names = sorted(
        (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"]
    )
    size = header[names[1]]["data_offsets"][1] - header[names[1]]["data_offsets"][0]
    header[names[1]]["data_offsets"] = [0, size]


def lie_negative(header):
    header[max(header)]["data_offsets"][0] = -8


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def header_longer_than_file(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", path.stat().st_size) + path.read_bytes()[8:])


def not_json(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 4) + b"{{{{" + path.read_bytes())


def deep_json(path: Path) -> None:
    raw = b"[" * 200_000
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)


def git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "truncated": truncate,
    "empty": empty,
    "huge header": huge_header,
    "header longer than file": header_longer_than_file,
    "not JSON": not_json,
    "deep JSON": deep_json,
    "Git LFS pointer": git_lfs_pointer,
    "wrong shape": lambda path: edit_header(path, lie_shape),
    "past the end": lambda path: edit_header(path, lie_past_the_end),
    "overlap": lambda path: edit_header(path, lie_overlap),
    "negative": lambda path: edit_header(path, lie_negative),
    "header is a list": lambda path: edit_header(path, lambda _: []),
    "no tensors": lambda path: save_file({}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("whose", ["base", "adapter"])
def test_damaged_safetensors(inputs: Inputs, capsys, whose: str, damage: str) -> None:
    folder, name = (
        (inputs.base, "model.safetensors") if whose == "base" else (inputs.adapter, ADAPTER_FILE)
    )
    DAMAGES[damage](folder / name)
    assert_refused(build(capsys, inputs), inputs, 3, str(folder))


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"no": "model_type"}'])
def test_damaged_config_of_the_base(inputs: Inputs, capsys, text) -> None:
    path = inputs.base / "config.json"
    path.unlink() if text is None else path.write_text(text)
    assert_refused(build(capsys, inputs), inputs, 3, "config.json")


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_damaged_config_of_the_adapter(inputs: Inputs, capsys, text) -> None:
    path = inputs.adapter / "adapter_config.json"
    path.unlink() if text is None else path.write_text(text)
    assert_refused(build(capsys, inputs), inputs, 3, "adapter_config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0},
        {"r": 5},
        {"r": None},
        {"r": "four"},
        {"lora_alpha": None},
        {"lora_alpha": "much"},
        {"lora_alpha": True},
        {"rank_pattern": {"query": 8}},
        {"rank_pattern": {"(": 8}},
        {"rank_pattern": ["query"]},
        {"alpha_pattern": {"query": None}},
    ],
    ids=str,
)
def test_config_that_contradicts_the_tensors(inputs: Inputs, capsys, changes) -> None:
    edit_json(inputs.adapter / "adapter_config.json", **changes)
    assert_refused(build(capsys, inputs), inputs, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"use_qalora": True},
        {"layer_replication": [[0, 1]]},
        {"alora_invocation_tokens": [1]},
    ],
    ids=str,
)
def test_adapter_of_another_kind_is_unsupported(inputs: Inputs, capsys, changes) -> None:
    edit_json(inputs.adapter / "adapter_config.json", **changes)
    assert_refused(build(capsys, inputs), inputs, 4, *list(changes)[:1] * ("use" in str(changes)))


@pytest.mark.parametrize(
    "changes",
    [{"use_dora": True}, {"lora_bias": True}, {"trainable_token_indices": [1]}],
    ids=str,
)
def test_adapter_without_the_parts_that_its_config_says(inputs: Inputs, capsys, changes) -> None:
    edit_json(inputs.adapter / "adapter_config.json", **changes)
    assert_refused(build(capsys, inputs), inputs, 3, *changes)


def test_base_and_adapter_that_are_not_there(inputs: Inputs, capsys) -> None:
    gone = inputs._replace(base=inputs.base / "nowhere")
    assert_refused(build(capsys, gone), gone, 3, "nowhere")
    gone = inputs._replace(adapter=inputs.adapter / "nowhere")
    assert_refused(build(capsys, gone), gone, 3, "nowhere")


def test_shards_that_contradict_their_index(inputs: Inputs, capsys) -> None:
    (inputs.base / "model.safetensors").rename(inputs.base / "model-1.safetensors")
    index = inputs.base / "model.safetensors.index.json"
    for table, word in (
        ({"weight_map": {"bert.x": "model-1.safetensors"}}, "bert.x"),
        ({"weight_map": {"bert.x": "model-2.safetensors"}}, "model-2.safetensors"),
        ({"weight_map": {"bert.x": "../model-1.safetensors"}}, "../model-1.safetensors"),
        ({"weight_map": {}}, "weight_map"),
        ({}, "weight_map"),
    ):
        index.write_text(json.dumps(table))
        assert_refused(build(capsys, inputs), inputs, 3, word)


# ---------------------------------------------------------------------- misfitting adapters


def rename_module(tensors):
    return {k.replace(".query.", ".wquery."): v for k, v in tensors.items()}


def stray_tensor(tensors):
    tensors["base_model.model.bert.encoder.layer.7.output.dense.bias"] = np.zeros(32, np.float32)


def stray_lora_kind(tensors):
    tensors["base_model.model.bert.encoder.layer.0.lora_C.weight"] = np.zeros(3, np.float32)


def widen(tensors):
    tensors[QUERY] = np.zeros((4, 33), np.float32)


def drop_partner(tensors):
    del tensors[QUERY]


def three_axes(tensors):
    tensors[QUERY] = np.zeros((4, 32, 1), np.float32)


def rank_zero(tensors):
    for name in tensors:
        if "lora_A" in name:
            tensors[name] = tensors[name][:0]
        elif "lora_B" in name:
            tensors[name] = np.ascontiguousarray(tensors[name][:, :0])


def other_rank(tensors):
    tensors[QUERY] = np.ascontiguousarray(tensors[QUERY][:2])


def integers(tensors):
    tensors[QUERY] = np.zeros((4, 32), np.int64)


def wide_head(tensors):
    tensors["base_model.model.classifier.weight"] = np.zeros((3, 48), np.float32)


def uneven_head(tensors):
    tensors["base_model.model.classifier.bias"] = np.zeros(5, np.float32)


MISFITS: dict[str, tuple[Callable[[Any], Any], int, str]] = {
    "unknown module": (rename_module, 3, "wquery"),
    "matches nothing": (stray_tensor, 3, "layer.7.output.dense.bias"),
    "unknown kind": (stray_lora_kind, 4, "lora_C"),
    "wrong width": (widen, 3, "query"),
    "no partner": (drop_partner, 3, "query"),
    "three axes": (three_axes, 3, "query"),
    "rank 0": (rank_zero, 3, "rank"),
    "another rank": (other_rank, 3, "rank"),
    "integers": (integers, 3, "int64"),
    "head of another width": (wide_head, 3, "classifier.weight"),
    "head's weight and bias disagree": (uneven_head, 3, "classifier"),
}


@pytest.mark.parametrize("fault", MISFITS)
def test_adapter_that_does_not_fit(inputs: Inputs, capsys, fault: str) -> None:
    change, code, word = MISFITS[fault]
    edit_tensors(inputs.adapter / ADAPTER_FILE, change)
    if fault == "rank 0":
        edit_json(inputs.adapter / "adapter_config.json", r=0)
    assert_refused(build(capsys, inputs), inputs, code, word)


def test_adapter_for_a_wider_base_names_tensors_and_shapes(tiny, inputs: Inputs, capsys) -> None:
    wide = tiny.base("bert", TASK, hidden_size=64)
    misfit = inputs._replace(adapter=tiny.adapter(wide))
    assert_refused(build(capsys, misfit), misfit, 3, "query", "[64, 64]", "[32, 32]")


def test_adapter_for_another_architecture_names_its_modules(tiny, inputs, capsys) -> None:
    misfit = inputs._replace(adapter=tiny.adapter(tiny.base("distilbert", TASK)))
    assert_refused(build(capsys, misfit), misfit, 3, "q_lin")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_in_an_adapter(inputs: Inputs, tmp_path, capsys, value) -> None:
    poison(inputs.adapter, tmp_path / "poisoned", value)
    bad = inputs._replace(adapter=tmp_path / "poisoned")
    assert_refused(build(capsys, bad), bad, 3, "NaN or infinity", "lora_B")


def test_nan_in_a_saved_head(inputs: Inputs, capsys) -> None:
    def change(tensors):
        tensors["base_model.model.classifier.bias"] = np.full(3, np.nan, np.float32)

    edit_tensors(inputs.adapter / ADAPTER_FILE, change)
    assert_refused(build(capsys, inputs), inputs, 3, "classifier.bias")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("base", 3), ("swappable", 3), ("batched", 3), ("model", 3), ("Upper", 3), ("-first", 3),
        ("_first", 3), ("a.b", 3), ("a b", 3), ("ünicode", 3), ("a" * 65, 3), ("a\n", 3),
        ("..", 3),
    ],
)  # fmt: skip
def test_reserved_or_ill_formed_name(inputs: Inputs, capsys, name: str, code: int) -> None:
    assert_refused(build(capsys, inputs, name=name), inputs, code, "name")


def test_well_formed_names_are_taken(inputs: Inputs, capsys) -> None:
    name = "0-a_" + "b" * 60
    assert build(capsys, inputs, name=name).code == 0
    assert list(manifest_of(inputs.out)["adapters"]) == [name]


def test_two_adapters_of_one_name(inputs: Inputs, capsys) -> None:
    result = build(capsys, inputs, "--adapter", f"mine={inputs.adapter}")
    assert_refused(result, inputs, 3, "'mine'")


# ------------------------------------------------------------------------ missing parameters


def test_parameters_that_nobody_has_are_listed(tiny: TinyModels, inputs: Inputs, capsys) -> None:
    bare = tiny.base("bert", "feature-extraction")
    result = call(capsys, "export", "--base", bare, "--task", TASK, "--out", inputs.out)
    assert_refused(result, inputs, 3, "classifier.weight", "classifier.bias", "--task")


def test_parameters_that_an_adapter_does_not_bring_are_listed(tiny, inputs, capsys) -> None:
    bare = tiny.base("bert", "feature-extraction")
    adapter = tiny.adapter(bare, task="feature-extraction", labels_count=None)
    headless = inputs._replace(base=bare, adapter=adapter)
    assert_refused(build(capsys, headless), headless, 3, "classifier.weight", "--task")


def test_head_under_feature_extraction_needs_an_explicit_drop(tiny, inputs, capsys) -> None:
    base = tiny.base("bert", "feature-extraction")
    adapter = tiny.adapter(base, labels_count=3, seed=4)
    arguments = ("merge-and-build", "--base", base, "--adapter", f"a={adapter}",
                 "--task", "feature-extraction", "--no-latency", "--out", inputs.out)  # fmt: skip
    result = call(capsys, *arguments)
    assert_refused(result, inputs, 3, "classifier.weight", "--drop")
    result = call(capsys, *arguments, "--drop", "classifier*")
    assert result.code == 0, result.err + result.out
    manifest = manifest_of(inputs.out)
    row = manifest["adapters"]["a"]
    assert row["dropped"] == ["classifier.bias", "classifier.weight"]
    assert row["tensors_applied"] == row["tensors_total"] - 2
    assert manifest["graphs"]["a"]["verification"] == "pass"


def test_drop_that_matches_nothing_is_a_usage_error(inputs: Inputs, capsys) -> None:
    assert_refused(build(capsys, inputs, "--drop", "no.such*"), inputs, 2, "no.such*")


@pytest.mark.parametrize("labels", ["one", "one,two", "a,b,c,d"])
def test_wrong_number_of_labels(inputs: Inputs, capsys, labels: str) -> None:
    result = build(capsys, inputs, "--labels", labels)
    assert_refused(result, inputs, 2, str(labels.count(",") + 1), "3")


def test_wrong_number_of_labels_for_the_base_s_own_head(tiny, inputs, capsys) -> None:
    """The adapter brings no head: the base's has three outputs, and two names are given."""
    adapter = tiny.adapter(inputs.base, seed=6, modules_to_save=[])
    edit_tensors(
        shutil.copytree(adapter, inputs.adapter, dirs_exist_ok=True) / ADAPTER_FILE,
        lambda tensors: {k: v for k, v in tensors.items() if "classifier" not in k},
    )
    edit_json(inputs.adapter / "adapter_config.json", modules_to_save=None)
    assert_refused(build(capsys, inputs, "--labels", "yes,no"), inputs, 2, "2", "3")


def test_a_head_that_the_config_lists_and_the_file_lacks(tiny, inputs, capsys) -> None:
    adapter = tiny.adapter(inputs.base, seed=6)
    edit_tensors(
        shutil.copytree(adapter, inputs.adapter, dirs_exist_ok=True) / ADAPTER_FILE,
        lambda tensors: {k: v for k, v in tensors.items() if "classifier" not in k},
    )
    assert_refused(build(capsys, inputs), inputs, 3, "classifier", "modules_to_save")


def test_wrong_number_of_labels_without_adapters(inputs: Inputs, capsys) -> None:
    result = call(capsys, "export", "--base", inputs.base, "--task", TASK, "--labels", "yes,no",
                  "--out", inputs.out)  # fmt: skip
    assert_refused(result, inputs, 2, "2", "3")


# -------------------------------------------------------------------------------- pickles


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.witness)],)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("whose", ["base", "adapter"])
def test_pickle_that_runs_code_is_refused_and_not_run(inputs, tmp_path, capsys, whose, form):
    import torch

    witness = tmp_path / "ran"
    folder, old, new = {
        "base": (inputs.base, "model.safetensors", "pytorch_model.bin"),
        "adapter": (inputs.adapter, ADAPTER_FILE, "adapter_model.bin"),
    }[whose]
    (folder / old).unlink()
    content = {"bert.x": torch.zeros(2), "payload": Bomb(witness)}
    if form == "bare pickle":
        (folder / new).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / new, _use_new_zipfile_serialization=form == "zip")
    assert_refused(build(capsys, inputs), inputs, 3, new)
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" + b"\0" * 100])
def test_damaged_bin_file(inputs: Inputs, capsys, content: bytes) -> None:
    (inputs.base / "model.safetensors").unlink()
    (inputs.base / "pytorch_model.bin").write_bytes(content)
    assert_refused(build(capsys, inputs), inputs, 3, "pytorch_model.bin")


# --------------------------------------------------------------------------- output and disk


def test_output_that_is_not_ours_is_left_alone(inputs: Inputs, capsys) -> None:
    inputs.out.mkdir()
    (inputs.out / "precious.txt").write_text("mine")
    result = build(capsys, inputs)
    assert result.code == 3
    assert "not an export directory" in result.message
    assert {p.name for p in inputs.out.iterdir()} == {"precious.txt"}
    assert stagings(inputs.out.parent) == []


def test_output_that_is_a_file_is_left_alone(inputs: Inputs, capsys) -> None:
    inputs.out.write_text("mine")
    result = build(capsys, inputs)
    assert result.code == 3
    assert str(inputs.out) in result.message
    assert inputs.out.read_text() == "mine"


def test_output_below_a_file_is_one_message(inputs: Inputs, capsys) -> None:
    (inputs.out.parent / "file").write_text("mine")
    result = build(capsys, inputs._replace(out=inputs.out.parent / "file" / "out"))
    assert result.code == 3
    assert "file" in result.message


def test_output_that_is_empty_is_taken(inputs: Inputs, capsys) -> None:
    inputs.out.mkdir()
    assert build(capsys, inputs).code == 0
    assert_intact(inputs.out)


def limit_files(size_bytes: int) -> Callable[[], None]:
    def apply() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    return apply


@pytest.mark.parametrize("size_bytes", [0, 4096, 100_000])
def test_full_disk_while_building(inputs: Inputs, capsys, size_bytes: int) -> None:
    warm = call(capsys, "export", "--base", inputs.base, "--task", TASK,
                "--out", inputs.out.parent.parent / "warm")  # fmt: skip
    assert warm.code == 0  # the graph is cached: what is too large is the export
    result = command("export", "--base", inputs.base, "--adapter", f"mine={inputs.adapter}",
                     "--task", TASK, "--out", inputs.out,
                     before=limit_files(size_bytes))  # fmt: skip
    assert_refused(result, inputs, 3, "cannot write")


@pytest.mark.parametrize("size_bytes", [0, 1000, 4000, 12_000])
def test_full_disk_while_adding_leaves_the_export_as_it_was(inputs, capsys, size_bytes) -> None:
    built = call(capsys, "export", "--base", inputs.base, "--task", TASK, "--out", inputs.out)
    assert built.code == 0, built.err
    before = snapshot(inputs.out)
    result = command("add", inputs.out, "--adapter", f"mine={inputs.adapter}",
                     before=limit_files(size_bytes))  # fmt: skip
    assert result.code == 3
    assert "cannot write" in result.message
    assert snapshot(inputs.out) == before
    assert stagings(inputs.out.parent) == []


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 200 KB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True, check=False
    )
    if not done or done.returncode != 0:
        pytest.skip("a tmpfs can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk_of_a_real_file_system(inputs: Inputs, small_disk: Path, capsys) -> None:
    small = inputs._replace(out=small_disk / "parent" / "out")
    small.out.parent.mkdir()
    (small_disk / "filler").write_bytes(b"\0" * 100_000)
    assert_refused(build(capsys, small), small, 3, "No space left on device")
    (small_disk / "filler").unlink()


# ------------------------------------------------------------------------------------ dtypes


def as_bfloat16(path: Path, *, value: float | None = None) -> None:
    def change(tensors):
        made = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
        if value is not None:
            made["bert.encoder.layer.1.output.dense.weight"][3, 5] = value
        return made

    edit_tensors(path, change)


def test_bfloat16_values_that_float16_cannot_hold(tiny, inputs: Inputs, capsys) -> None:
    base = tiny.base("deberta-v2", TASK)
    shutil.copytree(base, inputs.base, dirs_exist_ok=True)
    as_bfloat16(inputs.base / "model.safetensors")

    def change(tensors):
        tensors["deberta.encoder.layer.1.output.dense.weight"][3, 5] = 1e6

    edit_tensors(inputs.base / "model.safetensors", change)
    bad = inputs._replace(adapter=tiny.adapter(base, seed=1))
    result = build(capsys, bad)
    assert_refused(
        result, bad, 3, "float16", "deberta.encoder.layer.1.output.dense.weight", "--dtype"
    )


def test_merged_values_that_float16_cannot_hold(tiny, inputs: Inputs, tmp_path, capsys) -> None:
    """The base fits float16; base + adapter does not."""
    base = tiny.base("deberta-v2", TASK)
    poison(tiny.adapter(base, seed=1), tmp_path / "large", 1e8)
    bad = inputs._replace(base=base, adapter=tmp_path / "large")
    assert_refused(build(capsys, bad, "--dtype", "float16"), bad, 3, "float16", "value_proj")


def test_unknown_and_impossible_dtypes_are_unsupported(inputs: Inputs, capsys) -> None:
    assert_refused(build(capsys, inputs, "--dtype", "float31"), inputs, 4, "float31")
    assert_refused(build(capsys, inputs, "--dtype", "bfloat16"), inputs, 4, "bfloat16")


# ------------------------------------------------------------------------- missing runtimes


@pytest.mark.parametrize(
    ("package", "word"), [("peft", "peft"), ("torch", "torch"), ("onnxruntime", "ONNX Runtime")]
)
def test_missing_runtime_is_found_before_work_begins(inputs: Inputs, package, word) -> None:
    result = command("merge-and-build", "--base", inputs.base / "nowhere", "--task", TASK,
                     "--adapter", f"mine={inputs.adapter}", "--out", inputs.out,
                     without=[package])  # fmt: skip
    assert_refused(result, inputs, 7, word, "nstall")


def test_uncached_graph_without_torch_is_a_missing_runtime(inputs: Inputs, tmp_path) -> None:
    result = command("export", "--base", inputs.base, "--task", TASK, "--out", inputs.out,
                     without=["torch", "transformers"],
                     environment={"LORA_EXPORT_CACHE": str(tmp_path / "cache")})  # fmt: skip
    assert_refused(result, inputs, 7, "torch")


def test_unknown_model_type_is_unsupported(inputs: Inputs, capsys) -> None:
    edit_json(inputs.base / "config.json", model_type="no-such-model")
    assert_refused(build(capsys, inputs), inputs, 4, "no-such-model")


def test_remote_code_is_not_run(inputs: Inputs, tmp_path: Path, capsys) -> None:
    """Neither by the export nor by the reference of the verification."""
    witness = tmp_path / "ran"
    (inputs.base / "modeling_x.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    edit_json(
        inputs.base / "config.json",
        auto_map={
            "AutoConfig": "modeling_x.XConfig",
            "AutoModelForSequenceClassification": "modeling_x.X",
        },
    )
    result = call(capsys, "merge-and-build", "--base", inputs.base, "--task", TASK,
                  "--adapter", f"mine={inputs.adapter}", "--no-latency",
                  "--out", inputs.out)  # fmt: skip
    assert result.code == 0, result.err
    assert not witness.exists()
