"""Records whose texts hold half characters: from a path that is not UTF-8, or a damaged config."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lora_export.core.errors import InputError
from lora_export.core.json_file import is_encodable
from lora_export.core.manifest import manifest_bytes, read_manifest, write_manifest
from lora_export.core.safetensors_file import read_header
from tests.helpers.handmade import save_adapter, save_checkpoint, save_export

if TYPE_CHECKING:
    from pathlib import Path

HALF = "a\ud800b\udcff"


def test_a_manifest_with_half_characters_can_be_written_and_read(tmp_path: Path) -> None:
    export = save_export(tmp_path / "export")
    manifest = read_manifest(export)
    base = manifest.base.model_copy(update={"source": HALF, "labels": [HALF, "é"]})
    write_manifest(export, manifest.model_copy(update={"base": base}))
    read = read_manifest(export)
    assert read.base.source == r"a\ud800b\udcff"
    assert read.base.labels == [r"a\ud800b\udcff", "é"]
    assert read.adapters == manifest.adapters


def test_another_manifest_is_written_as_before(tmp_path: Path) -> None:
    manifest = read_manifest(save_export(tmp_path / "export"))
    text = manifest.model_dump_json(indent=1, exclude_none=True)
    assert manifest_bytes(manifest) == text.encode() + b"\n"


@pytest.mark.parametrize("where", ["name", "key", "value"])
def test_a_header_with_half_a_character_is_refused(tmp_path: Path, where: str) -> None:
    folder = save_adapter(tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if where == "name":
        header[HALF] = header.pop(next(name for name in header if name != "__metadata__"))
    else:
        header["__metadata__"] = {HALF: "x"} if where == "key" else {"x": HALF}
    body = json.dumps(header).encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body + raw[8 + length :])
    with pytest.raises(InputError, match="has half of a character"):
        read_header(path)


def test_a_pickle_with_half_a_character_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from lora_export.core.torch_file import read_torch_file

    folder = save_checkpoint(tmp_path / "base")
    torch.save({HALF: torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="has half of a character"):
        read_torch_file(folder / "pytorch_model.bin")


def test_other_characters_are_whole() -> None:
    assert is_encodable("é 语 \U0001f642")
    assert not is_encodable(HALF)
