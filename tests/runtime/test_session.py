"""An open export: every way of running an adapter, against graphs of their own and against PEFT."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from lora_export.commands.add import add
from lora_export.commands.recipe import AdapterSpec
from lora_export.commands.remove import remove
from lora_export.core.errors import (
    AdapterError,
    ExportDirectoryError,
    MissingRuntimeError,
    UnsupportedError,
    UsageError,
)
from lora_export.core.manifest import read_manifest
from lora_export.exports.at_load import merged_values
from lora_export.exports.outside_adapter import resolve_source
from lora_export.runtime import AdapterSource, open_export
from lora_export.runtime.adapter_file import model_version_of
from lora_export.runtime.ort import OrtRunner
from tests.cli.exports import peft_model, run_graph, run_torch
from tests.cli.running import HEAVY, python
from tests.helpers.builds import build
from tests.helpers.swappable import packed

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-classification"
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def feeds_of(rows: int = 2, length: int = 7, *, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(3, 200, (rows, length))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


FEEDS = feeds_of()


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.base("bert", TASK)


@pytest.fixture(scope="module")
def adapters(tiny, base):
    return {
        "a": tiny.adapter(base, seed=21),
        "b": tiny.adapter(base, seed=22, r=7, use_rslora=True),
        "c": tiny.adapter(base, seed=23, r=2, alpha=3),
    }


@pytest.fixture(scope="module")
def export(base, adapters, tmp_path_factory):
    """An export that holds the adapter ``a``."""
    return build(base, {"a": adapters["a"]}, tmp_path_factory.mktemp("session") / "out").output


@pytest.fixture(scope="module")
def swappable(base, adapters, tmp_path_factory):
    """A swappable export of all three."""
    folder = tmp_path_factory.mktemp("swappable")
    return build(base, adapters, folder / "out", mode="swappable").output


@pytest.fixture(scope="module")
def batched(base, adapters, tmp_path_factory):
    """A batched export of all three."""
    folder = tmp_path_factory.mktemp("batched")
    return build(base, adapters, folder / "out", mode="batched").output


@pytest.fixture(scope="module")
def by_peft(base, adapters):
    return {
        name: run_torch(peft_model(base, each, TASK, labels_count=3), FEEDS)
        for name, each in adapters.items()
    }


# ------------------------------------------------------------------------------- merged, at load


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "key", "dense"], "r": 3},
        {"use_dora": True},
        {"bias": "all"},
        {"target_modules": ["word_embeddings", "value"]},
    ],
    ids=["linear", "dora", "biases", "embedding"],
)
def test_merged_at_load_is_the_graph_that_add_writes_bit_for_bit(
    tiny, base, export, tmp_path, settings
):
    adapter = tiny.adapter(base, seed=31, **settings)
    with open_export(export, adapters={"new": adapter}) as session:
        assert session.ways("new") == ("merge_at_load",)
        (found,) = session.run(FEEDS, adapter="new").values()
    root = shutil.copytree(export, tmp_path / "out")
    add(root, [AdapterSpec(name="new", source=str(adapter))])
    assert np.array_equal(found, run_graph(root, "new", FEEDS))
    expected = run_torch(peft_model(base, adapter, TASK, labels_count=3), FEEDS)
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert not np.allclose(found, run_graph(root, "base", FEEDS), **CLOSE)


def test_of_a_head_that_the_base_lacks_only_adapters_can_be_run(tiny, tmp_path):
    bare = tiny.base("bert", "feature-extraction")
    first, second = (tiny.adapter(bare, seed=s, modules_to_save=["classifier"]) for s in (1, 2))
    root = build(bare, {"first": first}, tmp_path / "out", task=TASK).output
    with open_export(root, adapters={"second": second}) as session:
        with pytest.raises(UnsupportedError, match=r"classifier\.weight.*only adapters") as caught:
            session.run(FEEDS)
        assert "first, second" in (caught.value.hint or "")
        (found,) = session.run(FEEDS, adapter="second").values()
    add(root, [AdapterSpec(name="second", source=str(second))])
    assert np.array_equal(found, run_graph(root, "second", FEEDS))


def test_a_cast_export_is_merged_as_add_without_the_base_does(tiny, base, tmp_path):
    half = tiny.base("bert", TASK, dtype="float16")
    first, second = tiny.adapter(half, seed=1), tiny.adapter(half, seed=2)
    root = build(half, {"first": first}, tmp_path / "out", dtype="float32").output
    with open_export(root, adapters={"second": second}) as session:
        (found,) = session.run(FEEDS, adapter="second").values()
    add(root, [AdapterSpec(name="second", source=str(second))])
    assert np.array_equal(found, run_graph(root, "second", FEEDS))


def test_merged_values_are_let_go_once_the_session_is_open(export, adapters):
    """ONNX Runtime copies what it is handed: writing over it later changes nothing."""
    manifest = read_manifest(export)
    resolved = resolve_source(export, manifest, "b", AdapterSource(adapters["b"]))
    values = merged_values(export, manifest, resolved)
    stored = {u.initializer: u for uses in manifest.parameters.values() for u in uses}
    for name, use in stored.items():  # biases, norms and embeddings too, which are not repacked
        values.setdefault(name, np.full(use.shape, 0.01, np.float32))
    runner = OrtRunner(export / "base.onnx", initializers=values)
    before = runner.run(FEEDS)["logits"]
    for each in values.values():
        each[...] = np.nan
    assert np.array_equal(runner.run(FEEDS)["logits"], before)
    del values
    gc.collect()
    assert np.array_equal(runner.run(FEEDS)["logits"], before)


def test_bfloat16_initializers_are_handed_over(tmp_path):
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "xy")
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2], b"\0\0\0\0", raw=True)
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weight]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "g.onnx", save_as_external_data=True, size_threshold=0)
    handed = {"w": np.array([1.5, -2], ml_dtypes.bfloat16)}
    runner = OrtRunner(tmp_path / "g.onnx", initializers=handed)
    assert runner.run({"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[1.5, -2]]


def test_a_head_of_another_width_is_refused_with_what_can_hold_it(tiny, base, export):
    wide = tiny.adapter(base, seed=13, labels_count=5)
    with pytest.raises(UnsupportedError, match=r"'classifier\.\w+' of shape \[5") as caught:
        open_export(export, adapters={"wide": wide})
    assert "lora-export add" in (caught.value.hint or "")
    assert "--mode swappable" in (caught.value.hint or "")


def test_settings_of_a_given_adapter_are_applied(base, export, adapters, tmp_path):
    source = AdapterSource(adapters["b"], scale=0.5, drop=["classifier.*"])
    with open_export(export, adapters={"b": source}) as session:
        (found,) = session.run(FEEDS, adapter="b").values()
    root = shutil.copytree(export, tmp_path / "out")
    add(root, [AdapterSpec(name="b", source=str(adapters["b"]), scale=0.5, drop=["classifier.*"])])
    assert np.array_equal(found, run_graph(root, "b", FEEDS))


# ------------------------------------------------------------------------------- swappable, batched


def test_each_way_gives_what_peft_gives(swappable, by_peft):
    with open_export(swappable) as session:
        for name in "abc":
            assert session.ways(name) == ("swappable", "merge_at_load")
            for how in session.ways(name):
                found = session.run(FEEDS, adapter=name, how=how)["logits"]
                np.testing.assert_allclose(found, by_peft[name], **CLOSE)


def test_swapping_is_bit_stable_and_the_base_stays_the_base(swappable):
    sequence = ["b", "c", None, "b", "b", None, "c"]
    with open_export(swappable) as session:
        found: dict[Any, list[np.ndarray]] = {}
        for name in sequence:
            found.setdefault(name, []).append(session.run(FEEDS, adapter=name)["logits"])
        base = session.run(FEEDS, how="merged")["logits"]
    for each in found.values():
        assert all(np.array_equal(each[0], other) for other in each[1:])
    assert np.array_equal(found[None][0], base)
    assert not np.allclose(found["b"][0], found["c"][0])


def test_outputs_are_the_callers_and_no_later_run_writes_over_them(swappable):
    with open_export(swappable) as session:
        first = session.run(FEEDS, adapter="b")["logits"]
        kept = first.copy()
        session.run(feeds_of(seed=5), adapter="b")
        session.run(feeds_of(rows=5, length=3), adapter="b")
        assert np.array_equal(first, kept)
    gc.collect()
    assert np.array_equal(first, kept)


def test_an_optional_input_lasts_one_run(swappable):
    zero = {**FEEDS, "lora_scale": np.zeros((), np.float32)}
    head = {"lora_scale": np.ones((), np.float32)}
    with open_export(swappable) as session:
        full = session.run(FEEDS, adapter="b")["logits"]
        silent = session.run(zero, adapter="b")["logits"]
        assert not np.allclose(full, silent)
        assert np.array_equal(session.run(FEEDS, adapter="b")["logits"], full)
        with pytest.raises(UsageError, match="no input 'lora_scale'"):
            session.run({**FEEDS, **head}, adapter="a", how="merge_at_load")


def scaled_peft(base: Path, adapter: Path, scale: float) -> np.ndarray:
    """Return what PEFT gives with its scaling multiplied."""
    model = peft_model(base, adapter, TASK, labels_count=3)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(scale)
    return run_torch(model, FEEDS)


@pytest.mark.parametrize("scale", [0.5, 2, np.array(0.5, np.float32)])
def test_the_scale_is_that_of_peft_as_a_number_or_an_array(swappable, base, adapters, scale):
    with open_export(swappable) as session:
        found = session.run({**FEEDS, "lora_scale": scale}, adapter="b")["logits"]
    np.testing.assert_allclose(found, scaled_peft(base, adapters["b"], float(scale)), **CLOSE)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (np.array(0.5), "lora_scale.*float64, the graph reads float32"),
        (np.array([0.5], np.float32), r"lora_scale.*\[1\], the graph reads \[\]"),
        ("half", "lora_scale"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused_before_the_run(swappable, scale, message):
    with open_export(swappable) as session, pytest.raises(UsageError, match=message):
        session.run({**FEEDS, "lora_scale": scale}, adapter="b")


def test_values_that_hold_for_the_scale_1_are_not_run_with_another(tiny, base, tmp_path):
    """DoRA's factors, and biases that hold a B's, depend on the scale; a pack has them for 1."""
    both = {
        "dora": tiny.adapter(base, seed=24, use_dora=True),
        "biased": tiny.adapter(base, seed=25, lora_bias=True),
    }
    root = build(base, both, tmp_path / "out", mode="swappable").output
    with open_export(root) as session:
        for name in both:
            full = session.run(FEEDS, adapter=name)["logits"]
            one = session.run({**FEEDS, "lora_scale": 1}, adapter=name)["logits"]
            assert np.array_equal(one, full)
            with pytest.raises(UnsupportedError, match=f"lora_scale is 0.5.*{name!r}") as caught:
                session.run({**FEEDS, "lora_scale": 0.5}, adapter=name)
            assert "--scale NAME=0.5" in (caught.value.hint or "")
        session.run({**FEEDS, "lora_scale": 0.5})
    for name, adapter in both.items():  # what the hint says
        add(root, [AdapterSpec(name=f"half-{name}", source=str(adapter), scale=0.5)])
    with open_export(root) as session:
        for name, adapter in both.items():
            found = session.run(FEEDS, adapter=f"half-{name}")["logits"]
            np.testing.assert_allclose(found, scaled_peft(base, adapter, 0.5), **CLOSE)


def test_each_row_of_a_batch_has_its_own_adapter(batched, by_peft):
    with open_export(batched) as session:
        assert session.ways("b") == ("batched", "merge_at_load")
        rows = session.run(feeds_of(4), adapter_ids=[0, "b", 1, None])["logits"]
        for row, name in enumerate([None, "b", "a", None]):
            alone = {key: value[row : row + 1] for key, value in feeds_of(4).items()}
            expected = session.run(alone, adapter=name)["logits"]
            np.testing.assert_allclose(rows[row], expected[0], **CLOSE)
        for name, expected in by_peft.items():
            found = session.run(FEEDS, adapter_ids=[name, name])["logits"]
            np.testing.assert_allclose(found, expected, **CLOSE)
        assert not np.allclose(rows[1], session.run(feeds_of(4))["logits"][1], **CLOSE)


@pytest.mark.parametrize("ids", [[1], [1, 1, 1], [], "ab", 3])
def test_rows_that_do_not_fit_the_batch_are_refused(batched, ids):
    with open_export(batched) as session, pytest.raises(UsageError, match="2 row"):
        session.run(FEEDS, adapter_ids=ids)


@pytest.mark.parametrize("wrong", [4, -1, "zebra", 2.0, True])
def test_an_unknown_row_is_refused_with_those_that_there_are(batched, wrong):
    with open_export(batched) as session, pytest.raises(UsageError, match="no row") as caught:
        session.run(FEEDS, adapter_ids=[1, wrong])
    assert "a (1), b (2), c (3)" in (caught.value.hint or "")


def onnx_adapter(path: Path, tensors: dict[str, np.ndarray], version: int) -> Path:
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(version)
    values = {k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in tensors.items()}
    file.set_parameters(values)
    file.export_adapter(str(path))
    return path


def test_a_pack_given_by_path_is_run_if_it_is_of_this_base(swappable, adapters, by_peft, tmp_path):
    version = model_version_of(read_manifest(swappable).base.fingerprint)
    tensors = packed(adapters["b"])
    good = onnx_adapter(tmp_path / "good.onnx_adapter", tensors, version)
    other = onnx_adapter(tmp_path / "other.onnx_adapter", tensors, version ^ 1)
    with open_export(swappable, adapters={"pack": good}) as session:
        assert session.ways("pack") == ("swappable",)
        found = session.run(FEEDS, adapter="pack")["logits"]
        np.testing.assert_allclose(found, by_peft["b"], **CLOSE)
        assert session.cached_bytes == sum(each.nbytes for each in tensors.values())
    with pytest.raises(AdapterError, match="model version"):
        open_export(swappable, adapters={"pack": other})
    (tmp_path / "bad.onnx_adapter").write_bytes(b"garbage")
    with pytest.raises(AdapterError, match="bad"):
        open_export(swappable, adapters={"pack": tmp_path / "bad.onnx_adapter"})


def test_a_pack_needs_a_swappable_graph(export, adapters, tmp_path):
    pack = onnx_adapter(tmp_path / "p.onnx_adapter", packed(adapters["b"]), 1)
    with pytest.raises(UnsupportedError, match="swappable"):
        open_export(export, adapters={"pack": pack})


QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_B.weight"), "and not"),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": np.zeros((32, 3), "f")}),
            "lora_r of",
        ),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": np.zeros((31, 4), "f")}), r"\[31, 4\]"),
        (lambda t: t.update({"nowhere.lora_A.weight": np.zeros((32, 4), "f")}), "does not have"),
    ],
    ids=["half an adapter", "two ranks", "another width", "another model"],
)
def test_a_pack_that_does_not_fit_the_graph_is_refused(
    swappable, adapters, tmp_path, change, message
):
    tensors = packed(adapters["b"])
    change(tensors)
    version = model_version_of(read_manifest(swappable).base.fingerprint)
    pack = onnx_adapter(tmp_path / "p.onnx_adapter", tensors, version)
    with open_export(swappable, adapters={"pack": pack}) as session:
        with pytest.raises(AdapterError, match=message):
            session.run(FEEDS, adapter="pack")
        assert session.cached_bytes == 0


def test_a_pack_of_another_dtype_is_refused_by_name(swappable, adapters, tmp_path):
    version = model_version_of(read_manifest(swappable).base.fingerprint)
    halves = {name: each.astype(np.float16) for name, each in packed(adapters["b"]).items()}
    pack = onnx_adapter(tmp_path / "p.onnx_adapter", halves, version)
    with open_export(swappable, adapters={"pack": pack}) as session:
        with pytest.raises(AdapterError, match="float16, the graph reads float32"):
            session.run(FEEDS, adapter="pack")
        assert session.cached_bytes == 0


def test_a_pack_with_damaged_values_or_shapes_is_refused(swappable, adapters, tmp_path):
    version = model_version_of(read_manifest(swappable).base.fingerprint)
    tensors = packed(adapters["b"])
    tensors[f"{QUERY}.lora_A.weight"][0, 0] = np.nan
    pack = onnx_adapter(tmp_path / "nan.onnx_adapter", tensors, version)
    with pytest.raises(AdapterError, match=f"{QUERY}.lora_A.weight.*NaN"):
        open_export(swappable, adapters={"pack": pack})
    pack = onnx_adapter(tmp_path / "wide.onnx_adapter", packed(adapters["b"]), version)
    data = pack.read_bytes()
    shape, more = struct.pack("<qq", 32, 7), struct.pack("<qq", 1 << 40, 7)
    assert shape in data
    pack.write_bytes(data.replace(shape, more, 1))
    with pytest.raises(AdapterError, match=r"wide\.onnx_adapter"):
        open_export(swappable, adapters={"pack": pack})


# ------------------------------------------------------------------------------- the cache


def test_threads_with_several_adapters_and_room_for_one(swappable, adapters, by_peft):
    """Every thread gets its own adapter's result, and the budget is kept all the while."""
    more = {"d": adapters["b"], "e": adapters["c"]}
    truth = {**by_peft, "d": by_peft["b"], "e": by_peft["c"]}
    with open_export(swappable, adapters=more, threads=1) as session:
        for name in truth:
            session.load(name)
        limit = session.cached_bytes
    with open_export(swappable, adapters=more, threads=1) as session:
        largest = 0
        for name in truth:
            before = session.cached_bytes
            session.load(name)
            largest = max(largest, session.cached_bytes - before)
    assert largest < limit
    failures: list[str] = []
    session = open_export(swappable, adapters=more, threads=1, cache_bytes=largest)
    start = threading.Barrier(5)

    def hammer(seed: int) -> None:
        start.wait()
        random = np.random.default_rng(seed)
        for _ in range(12):
            name = str(random.choice(list(truth)))
            found = session.run(FEEDS, adapter=name)["logits"]
            if not np.allclose(found, truth[name], **CLOSE):
                failures.append(name)
            if session.cached_bytes > largest:
                failures.append(f"{session.cached_bytes} bytes")

    with session, ThreadPoolExecutor(5) as pool:
        for each in [pool.submit(hammer, seed) for seed in range(5)]:
            each.result()
    assert failures == []


def test_what_is_loaded_is_counted(swappable):
    manifest = read_manifest(swappable)
    weights = sum(
        4 * int(np.prod(use.shape))
        for uses in manifest.parameters.values()
        for use in uses
        if use.module != "Embedding"
    )
    pack = json.loads((swappable / "lora_export.json").read_text())["files"]
    assert "adapters/b.safetensors" in pack
    from safetensors.numpy import load_file

    tensors = load_file(swappable / "adapters" / "b.safetensors").values()
    with open_export(swappable) as session:
        assert session.cached_bytes == 0
        session.load("b")
        assert session.cached_bytes == sum(each.nbytes for each in tensors)
        session.load("b")
        session.run(FEEDS)
        assert session.cached_bytes == sum(each.nbytes for each in tensors)
        session.load("a", how="merge_at_load")
        assert session.cached_bytes == sum(each.nbytes for each in tensors) + weights
    assert session.cached_bytes == 0


def test_an_adapter_larger_than_the_budget_is_refused_with_what_it_takes(export):
    with open_export(export, cache_bytes=1000) as session:
        with pytest.raises(UsageError, match=r"a \(merged\) takes \d+ bytes") as caught:
            session.run(FEEDS, adapter="a")
        assert "cache_bytes" in (caught.value.hint or "")


# ------------------------------------------------------------------------------- errors


def test_an_unknown_adapter_is_an_error_that_lists_the_known_ones(export, adapters):
    with (
        open_export(export, adapters={"b": adapters["b"]}) as session,
        pytest.raises(AdapterError, match="no adapter 'zebra'") as caught,
    ):
        session.run(FEEDS, adapter="zebra")
    assert "a, b" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"adapter": "a", "how": "swappable"}, UnsupportedError, "no swappable graph"),
        ({"adapter": "a", "how": "quick"}, UsageError, "'quick'"),
        ({"how": "quick"}, UsageError, "'quick'"),
        ({"how": "swappable"}, UnsupportedError, "no swappable graph"),
        ({"adapter_ids": [0, 1]}, UnsupportedError, "no batched graph"),
        ({"adapter_ids": [0, 1], "adapter": "a"}, UsageError, "adapter_ids"),
    ],
)
def test_a_way_that_there_is_not_is_refused(export, arguments, error, message):
    with open_export(export) as session, pytest.raises(error, match=message):
        session.run(FEEDS, **arguments)


IDS = FEEDS["input_ids"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "also reads 'input_ids'"),
        ({"pixels": IDS}, "no input 'pixels'"),
        ({"input_ids": IDS.astype(np.int32)}, "int32.*int64"),
        ({"input_ids": IDS[0]}, r"\[7\].*'batch', 'sequence'"),
        ({"input_ids": IDS[:1]}, "'batch'.*2"),
    ],
)
def test_inputs_that_do_not_fit_are_named_before_anything_runs(export, change, message):
    feeds = {name: value for name, value in {**FEEDS, **change}.items() if value is not None}
    with open_export(export) as session, pytest.raises(UsageError, match=message):
        session.run(feeds, adapter="a")


def test_inputs_and_outputs_can_be_asked_for(export):
    with open_export(export) as session:
        assert {each.name: each.axes for each in session.inputs} == dict.fromkeys(
            FEEDS, ("batch", "sequence")
        )
        assert [(each.name, each.axes) for each in session.outputs] == [("logits", ("batch", 3))]


def test_a_closed_session_refuses(export):
    with open_export(export) as session:
        session.load("a")
    for arguments in ({}, {"adapter": "a"}):
        with pytest.raises(UsageError, match="closed"):
            session.run(FEEDS, **arguments)


def test_a_provider_that_is_not_there_is_no_reason_to_run_on_another(export):
    with pytest.raises(MissingRuntimeError, match="'cuda'") as caught:
        open_export(export, provider="cuda")
    assert "CPUExecutionProvider" in (caught.value.hint or "")


def test_an_adapter_of_another_task_or_another_model_is_refused(tiny, export, adapters):
    other = tiny.base("bert", "token-classification")
    tokens = tiny.adapter(other, task="token-classification")
    with pytest.raises(UsageError, match="token-classification"):
        open_export(export, adapters={"new": tokens})
    roberta = tiny.adapter(tiny.base("distilbert", TASK))
    with pytest.raises(AdapterError):
        open_export(export, adapters={"new": roberta})
    with pytest.raises(AdapterError, match="not the adapter 'a'"):
        open_export(export, adapters={"a": adapters["b"]})
    with pytest.raises(AdapterError, match="not allowed"):
        open_export(export, adapters={"New!": adapters["b"]})


def test_an_adapter_that_is_moved_is_found_where_it_is_given(tiny, base, tmp_path):
    mine = shutil.copytree(tiny.adapter(base, seed=41), tmp_path / "mine")
    root = build(base, {"mine": mine}, tmp_path / "out").output
    mine.rename(tmp_path / "moved")
    with open_export(root) as session:
        merged = session.run(FEEDS, adapter="mine")["logits"]
        with pytest.raises(AdapterError, match="not at"):
            session.run(FEEDS, adapter="mine", how="merge_at_load")
    with open_export(root, adapters={"mine": tmp_path / "moved"}) as session:
        found = session.run(FEEDS, adapter="mine", how="merge_at_load")["logits"]
    assert np.array_equal(found, merged)


def test_an_adapter_that_changes_while_the_session_is_open_is_refused(tiny, base, export, tmp_path):
    mine = shutil.copytree(tiny.adapter(base, seed=41), tmp_path / "mine")
    with open_export(export, adapters={"mine": mine}) as session:
        shutil.rmtree(mine)
        shutil.copytree(tiny.adapter(base, seed=42), mine)
        with pytest.raises(AdapterError, match="no longer the one"):
            session.run(FEEDS, adapter="mine")


# ------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("file", "damage", "hashed"),
    [
        ("base.onnx", flip, False),
        ("weights/base.safetensors", cut, False),
        ("weights/base.safetensors", flip, True),
        ("a.onnx", flip, False),
        ("weights/a.safetensors", cut, False),
        ("weights/a.safetensors", flip, True),
        ("weights/a.safetensors", lambda path: path.unlink(), False),
        ("adapters/b.safetensors", flip, False),
        ("swappable.onnx", flip, False),
    ],
)
def test_damage_is_found_before_a_file_is_used(request, tmp_path, file, damage, hashed):
    of_merged = file in {"a.onnx", "weights/a.safetensors"}
    export = request.getfixturevalue("export" if of_merged else "swappable")
    root = shutil.copytree(export, tmp_path / "out")
    damage(root / file)

    def use() -> None:
        with open_export(root, check_hashes=hashed) as session:
            for name in session.adapters:
                session.run(FEEDS, adapter=name)

    with pytest.raises(ExportDirectoryError, match=file.replace(".", r"\.")):
        use()


def test_an_export_that_changed_since_it_was_opened_says_so(swappable, batched, tmp_path):
    one, other = (
        shutil.copytree(each, tmp_path / each.parent.name) for each in (swappable, batched)
    )
    with open_export(one) as first, open_export(other) as second:
        kept = first.run(FEEDS, adapter="a")["logits"]
        for root in (one, other):
            remove(root, "a")
            remove(root, "b")
        assert np.array_equal(first.run(FEEDS, adapter="a")["logits"], kept)  # it is loaded
        with pytest.raises(ExportDirectoryError, match="changed since it was opened") as caught:
            first.run(FEEDS, adapter="b")
        assert caught.value.hint == "Open the export again."
        with pytest.raises(ExportDirectoryError, match="changed since it was opened"):
            second.run(FEEDS, adapter_ids=["c", "c"])
    with open_export(other) as again:
        again.run(FEEDS, adapter_ids=["c", "c"])


def test_what_is_not_used_is_not_read(swappable, tmp_path):
    root = shutil.copytree(swappable, tmp_path / "out")
    (root / "adapters" / "a.safetensors").unlink()
    with open_export(root, check_hashes=True) as session:
        session.run(FEEDS, adapter="b")


# ------------------------------------------------------------------------------- imports


def test_torch_is_never_imported(export, adapters):
    code = """
import sys
import numpy as np
for name in {names!r}:
    sys.modules[name] = None
import lora_export
from lora_export import runtime
assert "onnxruntime" not in sys.modules and "numpy" in sys.modules
with runtime.open_export(sys.argv[1], adapters={{"new": sys.argv[2]}}) as session:
    ids = np.ones((1, 3), np.int64)
    feeds = {{each.name: ids for each in session.inputs}}
    for adapter in (None, "a", "new"):
        print(session.run(feeds, adapter=adapter)["logits"].shape)
"""
    result = python("-c", code.format(names=HEAVY), str(export), str(adapters["b"]))
    assert result.code == 0, result.err
    assert result.out.splitlines() == ["(1, 3)"] * 3
