"""Packed adapters (``.onnx_adapter``) that a session is given by path."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.manifest import read_manifest
from lora_export.runtime import open_export
from lora_export.runtime.adapter_file import model_version_of
from tests.helpers.swappable import packed
from tests.runtime.session.example import CLOSE, FEEDS

if TYPE_CHECKING:
    from pathlib import Path


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
