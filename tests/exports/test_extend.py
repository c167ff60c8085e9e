"""Adding, replacing and removing adapters: bit for bit what a build from scratch writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_export.commands.add import add
from lora_export.commands.recipe import AdapterSpec
from lora_export.commands.remove import remove
from lora_export.core.errors import AdapterError, CheckpointError, ExportDirectoryError
from lora_export.core.manifest import read_manifest
from lora_export.exports.integrity import audit
from tests.helpers.builds import build, file_hashes, merged_by_peft, read_graph
from tests.helpers.measure import ROOT
from tests.helpers.peft_files import pair, write_peft

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-classification"


def spec(name: str, folder: Path) -> AdapterSpec:
    return AdapterSpec(name=name, source=str(folder))


def files_of(root: Path, name: str) -> tuple[bytes, bytes]:
    return (
        (root / f"{name}.onnx").read_bytes(),
        (root / "weights" / f"{name}.safetensors").read_bytes(),
    )


def intact(root: Path) -> bool:
    """Whether every file has the manifest's hash and nothing else lies about."""
    found = audit(root, read_manifest(root), hashed=True)
    assert (found.problems, found.unlisted) == ((), ())
    assert not [path for path in root.glob(".lora-export-*") if path.is_dir()]
    return True


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.base("bert", TASK)


@pytest.fixture(scope="module")
def one(tiny, base):
    return tiny.adapter(base, seed=11)


@pytest.fixture(scope="module")
def two(tiny, base):
    return tiny.adapter(base, seed=12, r=7, use_rslora=True, target_modules=["key", "dense"])


@pytest.fixture(scope="module")
def wide(tiny, base):
    return tiny.adapter(base, seed=13, labels_count=5)


@pytest.fixture(scope="module")
def with_one(base, one, tmp_path_factory):
    return build(base, {"one": one}, tmp_path_factory.mktemp("export") / "out").output


@pytest.fixture
def root(with_one, tmp_path):
    """A copy of an export that holds the adapter ``one``."""
    return shutil.copytree(with_one, tmp_path / "out")


# -------------------------------------------------------------------------------- bit-identity


def test_an_added_adapter_is_bit_identical_to_a_built_one(root, base, one, two, tmp_path):
    add(root, [spec("two", two)])
    both = build(base, {"one": one, "two": two}, tmp_path / "both").output
    alone = build(base, {"two": two}, tmp_path / "alone").output
    assert files_of(root, "two") == files_of(both, "two") == files_of(alone, "two")
    assert intact(root)
    assert file_hashes(root) == file_hashes(both)


def test_the_order_of_the_adapters_changes_no_file_but_the_manifests_order(
    base, one, two, tmp_path
):
    forth = build(base, {"one": one, "two": two}, tmp_path / "forth").output
    back = build(base, {"two": two, "one": one}, tmp_path / "back").output
    hashes = [file_hashes(root) for root in (forth, back)]
    for table in hashes:
        del table["lora_export.json"]
    assert hashes[0] == hashes[1]


def test_the_same_build_twice_is_the_same_bytes(with_one, base, one, tmp_path):
    again = build(base, {"one": one}, tmp_path / "again").output
    assert file_hashes(again) == file_hashes(with_one)


def test_an_adapter_of_another_number_of_labels_is_bit_identical_too(
    root, base, one, wide, tmp_path
):
    add(root, [spec("wide", wide)])
    alone = build(base, {"wide": wide}, tmp_path / "alone").output
    assert files_of(root, "wide") == files_of(alone, "wide")
    add(alone, [spec("one", one)])
    assert files_of(root, "one") == files_of(alone, "one")
    assert load_file(root / "weights" / "wide.safetensors")["classifier.bias"].shape == (5,)


def test_a_base_without_a_head_gives_the_same_files_whichever_adapter_came_first(tiny, tmp_path):
    bare = tiny.base("bert", "feature-extraction")
    narrow = tiny.adapter(bare, seed=11, modules_to_save=["classifier", "pooler"])
    broad = tiny.adapter(bare, seed=13, labels_count=5)
    forth = build(bare, {"narrow": narrow}, tmp_path / "forth", task=TASK).output
    add(forth, [spec("broad", broad)])
    back = build(bare, {"broad": broad}, tmp_path / "back", task=TASK).output
    add(back, [spec("narrow", narrow)])
    for name in ("narrow", "broad"):
        assert files_of(forth, name) == files_of(back, name)
    assert (forth / "weights/base.safetensors").read_bytes() == (
        back / "weights/base.safetensors"
    ).read_bytes()


def test_the_added_graph_computes_what_peft_computes(root, base, wide):
    import onnxruntime
    import peft
    import torch

    from tests.helpers.models import load_tiny

    add(root, [spec("wide", wide)])
    session = onnxruntime.InferenceSession(str(root / "wide.onnx"))
    ids = np.random.default_rng(0).integers(1, 200, (3, 9))
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    assert session.get_outputs()[0].shape == ["batch", 5]
    (found,) = session.run(None, feeds)
    model = peft.PeftModel.from_pretrained(load_tiny(base, TASK, labels_count=5), str(wide)).eval()
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found, expected.logits.numpy(), rtol=1e-4, atol=1e-5)


def test_several_adapters_at_once(root, two, wide):
    outcome = add(root, [spec("two", two), spec("wide", wide)])
    assert list(outcome.manifest.adapters) == ["one", "two", "wide"]
    assert intact(root)


def test_adding_imports_neither_torch_nor_transformers(root, two):
    code = """
import sys
from pathlib import Path
from lora_export.commands.add import add
from lora_export.commands.recipe import AdapterSpec
add(Path(sys.argv[1]), [AdapterSpec(name="two", source=sys.argv[2])])
heavy = {"torch", "transformers", "peft", "onnxruntime", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, root, two], cwd=ROOT, check=True)
    assert "two" in read_manifest(root).adapters


# ------------------------------------------------------------------------- replace and remove


def test_a_taken_name_is_refused_and_nothing_changes(root, two):
    before = file_hashes(root)
    with pytest.raises(AdapterError, match="already holds an adapter 'one'") as caught:
        add(root, [spec("one", two)])
    assert "--replace" in (caught.value.hint or "")
    assert file_hashes(root) == before


def test_a_replaced_adapter_is_the_new_one(root, base, two, tmp_path):
    add(root, [spec("one", two)], replace=True)
    fresh = build(base, {"one": two}, tmp_path / "fresh").output
    assert files_of(root, "one") == files_of(fresh, "one")
    assert file_hashes(root) == file_hashes(fresh)
    assert intact(root)


def test_an_adapter_that_is_replaced_is_not_verified_any_more(base, one, two, tmp_path):
    outcome = build(base, {"one": one}, tmp_path / "out", verify={"enabled": True})
    assert outcome.manifest.graphs["one"].verification == "pass"
    updated = add(outcome.output, [spec("one", two)], replace=True).manifest
    assert updated.graphs["one"].verification == "unverified"
    assert updated.graphs["one"].golden is None
    assert updated.graphs["base"].verification == "pass"
    assert intact(outcome.output)  # the golden outputs of the old one are gone too


def test_a_removed_adapter_leaves_the_export_as_it_was_before(root, two):
    before = file_hashes(root)
    add(root, [spec("two", two)])
    assert file_hashes(root) != before
    remove(root, "two")
    assert file_hashes(root) == before
    assert intact(root)


def test_removing_the_only_adapter_leaves_the_base(root):
    manifest = remove(root, "one").manifest
    assert manifest.adapters == {}
    assert list(manifest.graphs) == ["base"]
    assert not (root / "one.onnx").exists()
    assert not (root / "weights/one.safetensors").exists()
    assert intact(root)


def test_what_is_not_there_cannot_be_removed(root):
    before = file_hashes(root)
    with pytest.raises(AdapterError, match="holds no adapter 'two'") as caught:
        remove(root, "two")
    assert "one" in (caught.value.hint or "")
    assert file_hashes(root) == before


@pytest.mark.parametrize("name", ["base", "../one", "", "/etc/passwd"])
def test_what_is_no_adapters_name_cannot_be_removed(root, name):
    before = file_hashes(root)
    with pytest.raises(AdapterError):
        remove(root, name)
    assert file_hashes(root) == before


def test_a_verified_adapter_is_removed_with_its_golden_outputs(base, one, tmp_path):
    root = build(base, {"one": one}, tmp_path / "out", verify={"enabled": True}).output
    assert (root / "golden/one.npz").is_file()
    remove(root, "one")
    assert not (root / "golden/one.npz").exists()
    assert (root / "golden/base.npz").is_file()
    assert intact(root)


def test_building_again_replaces_its_own_adapters_and_keeps_the_others(root, base, one, two):
    before = file_hashes(root)
    add(root, [spec("two", two)])
    outcome = build(base, {"one": two}, root)
    assert set(outcome.manifest.adapters) == {"one", "two"}
    assert files_of(root, "one")[1] != (root / "one.onnx").read_bytes()
    assert file_hashes(root)["weights/base.safetensors"] == before["weights/base.safetensors"]
    build(base, {"one": one}, root)
    remove(root, "two")
    assert file_hashes(root) == before


# ---------------------------------------------------------------------------------- two at once

ADD = """
import sys, time
from pathlib import Path
from lora_export.commands.add import add
from lora_export.commands.recipe import AdapterSpec
root, start, adapters = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
time.sleep(max(0, start - time.time()))
for argument in adapters:
    name, _, source = argument.partition("=")
    add(root, [AdapterSpec(name=name, source=source)])
"""


def test_adds_of_several_processes_all_arrive(root, one, two, wide):
    import time

    start = time.time() + 1.5
    wanted = [
        [f"{kind}-{process}-{index}={folder}" for index in range(3)]
        for process, (kind, folder) in enumerate((("two", two), ("wide", wide), ("one", one)))
    ]
    processes = [
        subprocess.Popen([sys.executable, "-c", ADD, root, str(start), *adapters], cwd=ROOT)
        for adapters in wanted
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    manifest = read_manifest(root)
    names = {argument.partition("=")[0] for adapters in wanted for argument in adapters}
    assert set(manifest.adapters) == names | {"one"}
    assert set(manifest.graphs) == names | {"one", "base"}
    assert intact(root)


def test_two_processes_that_add_the_same_name_one_wins_and_the_export_is_whole(root, two, wide):
    import time

    start = time.time() + 1.5
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, root, str(start), f"new={folder}"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        for folder in (two, wide)
    ]
    codes = sorted(process.wait(timeout=120) for process in processes)
    assert codes == [0, 1]
    assert set(read_manifest(root).adapters) == {"one", "new"}
    assert intact(root)


# ------------------------------------------------------------------------------- another base


def test_an_adapter_of_another_base_is_refused_and_nothing_changes(root, tiny):
    other = tiny.base("roberta", TASK)
    before = file_hashes(root)
    with pytest.raises(AdapterError, match="match nothing in the base"):
        add(root, [spec("other", tiny.adapter(other))])
    assert file_hashes(root) == before


def test_an_adapter_of_a_wider_base_is_refused(root, tiny):
    wider = tiny.base("bert", TASK, hidden_size=48)
    with pytest.raises(AdapterError, match="do not fit") as caught:
        add(root, [spec("other", tiny.adapter(wider))])
    assert "[48, 48]" in caught.value.message
    assert "[32, 32]" in caught.value.message


def test_an_adapter_that_is_damaged_leaves_nothing(root, tmp_path):
    module = "bert.encoder.layer.0.attention.self.query"
    tensors = pair(module, 32, 32)
    tensors[f"base_model.model.{module}.lora_B.weight"][3, 1] = np.nan
    folder = write_peft(tmp_path / "bad", tensors)
    before = file_hashes(root)
    with pytest.raises(AdapterError, match=r"lora_B.*NaN"):
        add(root, [spec("bad", folder)])
    assert file_hashes(root) == before
    assert intact(root)


def test_another_base_is_refused_by_its_fingerprint(root, tiny, two):
    before = file_hashes(root)
    with pytest.raises(ExportDirectoryError, match="not the base of this export"):
        add(root, [spec("two", two)], base=tiny.base("bert", TASK, seed=5))
    assert file_hashes(root) == before


def test_building_from_another_base_into_an_export_is_refused(root, tiny, one):
    before = file_hashes(root)
    with pytest.raises(ExportDirectoryError, match="another base"):
        build(tiny.base("bert", TASK, seed=5), {"one": one}, root)
    assert file_hashes(root) == before


def test_an_adapter_without_the_head_that_the_base_lacks_is_refused(tiny, tmp_path):
    bare = tiny.base("bert", "feature-extraction")
    full = tiny.adapter(bare, seed=11, modules_to_save=["classifier", "pooler"])
    root = build(bare, {"full": full}, tmp_path / "out", task=TASK).output
    headless = write_peft(
        tmp_path / "headless", pair("bert.encoder.layer.0.attention.self.query", 32, 32)
    )
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        add(root, [spec("headless", headless)])
    assert intact(root)


def test_a_base_graph_without_its_head_is_marked_and_its_adapters_are_not(tiny, tmp_path):
    bare = tiny.base("bert", "feature-extraction")
    full = tiny.adapter(bare, seed=11)
    manifest = build(bare, {"full": full}, tmp_path / "out", task=TASK).manifest
    assert manifest.graphs["base"].missing == ["classifier.bias", "classifier.weight"]
    assert manifest.graphs["full"].missing == []
    assert manifest.adapters["full"].missing_in_base == ["classifier.bias", "classifier.weight"]


# -------------------------------------------------------------------------------- cast exports


def test_a_cast_export_extended_with_its_base_is_bit_identical(base, one, two, tmp_path):
    root = build(base, {"one": one}, tmp_path / "out", dtype="float16").output
    both = build(base, {"one": one, "two": two}, tmp_path / "both", dtype="float16").output
    manifest = add(root, [spec("two", two)], base=base).manifest
    assert manifest.adapters["two"].merged_from == "checkpoint"
    assert file_hashes(root) == file_hashes(both)


def test_a_cast_export_extended_without_its_base_says_so(base, one, two, tmp_path):
    root = build(base, {"one": one}, tmp_path / "out", dtype="float16").output
    manifest = add(root, [spec("two", two)]).manifest
    assert manifest.adapters["two"].merged_from == "export"
    assert manifest.adapters["one"].merged_from == "checkpoint"
    # Merged from the rounded base: near, and recorded as not the same.
    both = build(base, {"one": one, "two": two}, tmp_path / "both", dtype="float16").output
    assert files_of(root, "two")[1] != files_of(both, "two")[1]
    expected = merged_by_peft(base, two, TASK)
    for name, values in read_graph(root, "two").items():
        np.testing.assert_allclose(
            values.astype(np.float64), expected[name], rtol=3e-3, atol=1e-3, err_msg=name
        )


def test_an_adapter_of_saved_parameters_only_is_exact_without_the_base(base, one, tmp_path):
    root = build(base, {"one": one}, tmp_path / "out", dtype="float16").output
    head = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    folder = write_peft(
        tmp_path / "head",
        {
            "base_model.model.classifier.weight": head,
            "base_model.model.classifier.bias": np.zeros(4, np.float32),
        },
    )
    manifest = add(root, [spec("head", folder)]).manifest
    assert manifest.adapters["head"].merged_from == "checkpoint"
    found = read_graph(root, "head")["classifier.weight"]
    np.testing.assert_array_equal(found, head.astype(np.float16))


def test_a_bfloat16_base_becomes_float16_for_a_target_without_it(tiny, tmp_path):
    brain = tiny.base("bert", TASK, dtype="bfloat16")
    adapter = tiny.adapter(brain, seed=11)
    root = build(brain, {"one": adapter}, tmp_path / "out").output
    manifest = read_manifest(root)
    assert manifest.base.dtype == "float16"
    assert manifest.adapters["one"].merged_from == "checkpoint"
    expected = merged_by_peft(brain, adapter, TASK)
    for name, values in read_graph(root, "one").items():
        nearest = expected[name].astype(np.float32).astype(np.float16)
        assert np.mean(values != nearest) < 0.01, name


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _turn(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"shape":[32,48]', b'"shape":[48,32]', 1))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights/base.safetensors", _cut),
        ("weights/base.safetensors", _append),
        ("weights/base.safetensors", _turn),
        ("base.onnx", _append),
        ("base.onnx", lambda path: path.unlink()),
    ],
)
def test_a_damaged_base_is_not_built_on(root, two, file, damage):
    damage(root / file)
    before = file_hashes(root)
    with pytest.raises(ExportDirectoryError, match=r"is not what was written") as error:
        add(root, [spec("two", two)])
    assert file in error.value.message
    assert file_hashes(root) == before
