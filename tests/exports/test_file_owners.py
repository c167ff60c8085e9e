"""The owner of each file of an export: what an adapter is called does not decide it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.core.engine_names import engines_of
from lora_export.core.manifest import read_manifest
from lora_export.exports.file_owners import files_of_adapter, files_of_base
from tests.helpers.builds import build

if TYPE_CHECKING:
    from lora_export.core.manifest import Manifest
    from tests.helpers.models import TinyModels

NAMES = ("hf", "onnx", "weights", "golden", "safetensors", "plain", "npz", "adapters")


@pytest.fixture(scope="module", params=["merged", "swappable", "batched"])
def manifest(request: pytest.FixtureRequest, tiny: TinyModels,
             tmp_path_factory: pytest.TempPathFactory) -> Manifest:  # fmt: skip
    """Return the manifest of an export whose adapters have the names of folders and endings."""
    base = tiny.base("bert", "text-classification")
    adapter = tiny.adapter(base, seed=1)
    output = tmp_path_factory.mktemp("owners") / str(request.param)
    build(base, dict.fromkeys(NAMES, adapter), output, mode=request.param)
    return read_manifest(output)


def test_every_file_has_one_owner_or_is_written_again_by_many(manifest: Manifest) -> None:
    base = files_of_base(manifest)
    assert {"base.onnx", "weights/base.safetensors", "hf/config.json"} <= base
    own = [files_of_adapter(manifest, name) for name in NAMES]
    assert sum(map(len, own)) == len(frozenset().union(*own))
    assert not base & frozenset().union(*own)
    rest = set(manifest.files) - base - frozenset().union(*own)
    assert all(file.startswith(("reports/", "golden/", "batched", "weights/batched-"))
               for file in rest)  # fmt: skip


def test_an_adapter_owns_what_its_record_names(manifest: Manifest) -> None:
    assert files_of_adapter(manifest, "none") == frozenset()
    found = files_of_adapter(manifest, "hf")
    record = manifest.adapters["hf"]
    if record.pack is not None:
        assert found == {record.pack.safetensors, record.pack.onnx_adapter}
    elif record.row is not None:
        assert found == frozenset()
    else:
        assert found == {"hf.onnx", "weights/hf.safetensors"}


def test_an_engine_is_of_the_graph_that_its_name_begins_with() -> None:
    files = [
        "engines/rtx.rtx1.7.1.timing",  # of a target, not of an adapter
        "engines/rtx.rtx.rtx1.7.1.plan", "engines/rtx.rtx.rtx1.7.1.json",
        "engines/rtx.rtx.rtx1.7.1.rtx4090.cache",
        "engines/decoder.one.l4.trt10.3.0.plan", "engines/decoder.l4.trt10.3.0.plan",
    ]  # fmt: skip
    assert engines_of("rtx", files) == set(files[1:4])
    assert engines_of("one", files) == {files[4]}
    assert engines_of("decoder", files) == {files[5]}
