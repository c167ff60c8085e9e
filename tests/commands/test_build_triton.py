"""``merge_and_build`` does all that a recipe says: its section ``triton`` too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import lora_export
from lora_export.core.errors import ParityError
from lora_export.core.safetensors_file import read_header
from lora_export.core.safetensors_write import write_tensors
from lora_export.core.tensors import MemoryTensor, read_all
from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("tritonclient")

RECIPE = """
base: {base}
adapters:
  - {{name: a, source: {adapter}}}
task: text-classification
output: out
verify: {{enabled: {verify}}}
latency: {{enabled: false}}
triton: {{repository: models, name: m, max_batch_size: 4}}
"""


def write_recipe(folder: Path, base: Path, adapter: Path, *, verify: bool) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(base=base, adapter=adapter, verify=str(verify).lower()))
    return path


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.base("bert", "text-classification", tokenizer=True)


def without_effect(adapter: Path, folder: Path) -> Path:
    """Return a copy of an adapter whose B are zeros."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors, _ = read_header(adapter / "adapter_model.safetensors")
    write_tensors(
        folder / "adapter_model.safetensors",
        {
            name: MemoryTensor(name, each.dtype, read_all(each) * ("lora_B" not in name))
            for name, each in tensors.items()
        },
        {},
    )
    return folder


def test_a_recipes_model_repository_is_written_and_returned(tiny, base, tmp_path, capsys) -> None:
    adapter = tiny.adapter(base, seed=41)
    path = write_recipe(tmp_path, base, adapter, verify=False)
    outcome = lora_export.merge_and_build(lora_export.load_recipe(path))
    assert outcome.triton is not None
    assert outcome.triton.repository == tmp_path / "models"
    assert outcome.triton.models == ("m-a",)
    assert "max_batch_size: 4" in (tmp_path / "models/m-a/config.pbtxt").read_text()

    (tmp_path / "again").mkdir()
    again = write_recipe(tmp_path / "again", base, adapter, verify=False)
    result = call(capsys, "merge-and-build", again, "--json")
    assert result.code == 0, result.err
    assert result.document["triton"]["models"] == ["m-a"]
    assert (tmp_path / "again/models/m-a/config.pbtxt").is_file()


def test_an_export_that_fails_a_gate_is_not_served(tiny, base, tmp_path) -> None:
    adapter = without_effect(tiny.adapter(base, seed=42), tmp_path / "adapter")
    path = write_recipe(tmp_path, base, adapter, verify=True)
    outcome = lora_export.merge_and_build(lora_export.load_recipe(path))
    assert outcome.exit_code() == ParityError.exit_code
    assert outcome.triton is None
    assert not (tmp_path / "models").exists()
