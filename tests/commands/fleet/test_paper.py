"""The storage of 100 tasks in the LoRA paper (arXiv 2106.09685, section 4.2), in a plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lora_export.cli import run as run_command
from lora_export.fleet.content import ContentHashes
from lora_export.ondevice.file_opening import require_file

if TYPE_CHECKING:
    from pathlib import Path

TASKS, LAYERS, WIDTH, RANK = 100, 96, 12288, 4
GPT3_BYTES = 350 * 10**9
"""GPT-3 175B in float16."""
ADAPTER_BYTES = 2 * LAYERS * 2 * RANK * WIDTH * 2
"""A and B on q and v of each layer in float16: 38 MB; the paper says 35 MB."""


def sparse(path: Path, head: bytes, size_bytes: int) -> None:
    """Write a file of so many bytes that takes no room."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size_bytes)


def write_models(folder: Path) -> None:
    """Write a base and adapters with the sizes of the paper."""
    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "gpt2", "dtype": "float16"}))
    sparse(base / "model.safetensors", b"", GPT3_BYTES)
    module = "base_model.model.transformer.h.{}.attn.{}_proj.lora_{}.weight"
    shapes = {
        module.format(layer, part, side): (RANK, WIDTH) if side == "A" else (WIDTH, RANK)
        for layer in range(LAYERS) for part in "qv" for side in "AB"
    }  # fmt: skip
    header = header_of(shapes)
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["q_proj", "v_proj"],
    }
    for at in range(TASKS):
        adapter = folder / "adapters" / f"task-{at}"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        sparse(adapter / "adapter_model.safetensors", header, len(header) + ADAPTER_BYTES)


def header_of(shapes: dict[str, tuple[int, int]]) -> bytes:
    """Return the head of a safetensors file in float16."""
    table, at = {}, 0
    for name, shape in shapes.items():
        size = shape[0] * shape[1] * 2
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(table).encode()
    return len(raw).to_bytes(8, "little") + raw


@pytest.fixture
def plan_of_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Return a function for the sums of the paper's fleet in a mode."""
    write_models(tmp_path)

    def of_file(self: ContentHashes, path: Path) -> str:
        """Return a hash of a size: 350 GB are not read."""
        return f"{require_file(path).st_size:064x}"

    monkeypatch.setattr(ContentHashes, "of_file", of_file)

    def planned(mode: str) -> dict[str, Any]:
        table = {
            "bases": {"gpt3": {"path": "base", "task": "text-generation"}},
            "adapters": [{"base": "gpt3", "path": "adapters/*"}],
            "variants": [{"mode": mode}],
            "store": "out",
        }
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(table))
        capsys.readouterr()
        assert run_command(["fleet", "plan", str(tmp_path / "fleet.yaml"), "--dry-run",
                            "--json"]) == 0  # fmt: skip
        return dict(json.loads(capsys.readouterr().out)["estimate"])

    return planned


def test_adapters_of_a_hundred_tasks_take_a_hundredth_of_copies(plan_of_mode: Any) -> None:
    estimate = plan_of_mode("swappable")
    assert estimate["copies_bytes"] == TASKS * GPT3_BYTES  # 35 TB
    adapters = estimate["disk_bytes"] - GPT3_BYTES
    # each is stored twice, as safetensors and as a pack of ONNX Runtime, with a graph of 1 MB
    assert adapters == pytest.approx(TASKS * 2 * ADAPTER_BYTES, rel=0.02)
    assert estimate["disk_bytes"] < 358e9  # 354 GB in the paper


def test_merged_adapters_take_the_weights_that_they_change(plan_of_mode: Any) -> None:
    estimate = plan_of_mode("merged")
    changed = 2 * LAYERS * WIDTH * WIDTH * 2
    assert estimate["disk_bytes"] - GPT3_BYTES == pytest.approx(TASKS * changed, rel=0.001)
