"""One adapter in every format through the command: each export holds the weights of PEFT's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.adapters.formats.test_llama_cpp import NAMES as GGUF
from tests.adapters.formats.test_llama_cpp import write as write_gguf
from tests.adapters.formats.test_torchtune import NAMES as TUNE
from tests.cli.running import call
from tests.helpers.formats import write_tensors
from tests.helpers.rotary import reordered

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"
HEADS = {"q_proj": 4, "k_proj": 2}
R, ALPHA = 4, 8
Factors = dict[str, tuple[Any, Any]]


@pytest.fixture
def peft(tiny) -> Path:
    return tiny.adapter(
        tiny.base("llama", TASK), task=TASK, r=R, alpha=ALPHA, target_modules="all-linear"
    )


def factors_of(adapter: Path) -> Factors:
    stored = load_file(adapter / "adapter_model.safetensors")
    ends = {"lora_A.weight": 0, "lora_B.weight": 1}
    found: dict[str, dict[int, Any]] = {}
    for key, values in stored.items():
        module, _, end = key.removeprefix("base_model.model.").rpartition(".lora_")
        found.setdefault(module, {})[ends[f"lora_{end}"]] = values
    return {module: (pair[0], pair[1]) for module, pair in found.items()}


def renamed(factors: Factors, names: dict[str, str], layer: str) -> Factors:
    """Return factors under a tool's names, q and k with the rows as that tool stores them."""
    to_theirs = {ours: theirs for theirs, ours in names.items()}
    found = {}
    for module, (a, b) in factors.items():
        number = next(part for part in module.split(".") if part.isdigit())
        theirs = to_theirs[module.replace(f".{number}.", f".{layer}.")]
        heads = HEADS.get(module.rpartition(".")[2])
        rows = reordered(b, heads) if heads else b
        found[theirs.replace(f".{layer}.", f".{number}.")] = (a, rows)
    return found


def as_gguf(factors: Factors, folder: Path) -> tuple[Path, tuple[str, ...]]:
    tensors = {}
    for name, (a, b) in renamed(factors, GGUF, "7").items():
        tensors |= {f"{name}.weight.lora_a": a, f"{name}.weight.lora_b": b}
    folder.mkdir()
    return write_gguf(folder / "mine.gguf", tensors, alpha=float(ALPHA)), ()


def as_torchtune(factors: Factors, folder: Path) -> tuple[Path, tuple[str, ...]]:
    tensors = {}
    for name, (a, b) in renamed(factors, TUNE, "5").items():
        tensors |= {f"{name}.lora_a.weight": a, f"{name}.lora_b.weight": b}
    folder.mkdir()
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, folder / "adapter_0.pt")
    return folder, ("--alpha", str(ALPHA))


def as_mlx(factors: Factors, folder: Path) -> tuple[Path, tuple[str, ...]]:
    tensors = {}
    for name, (a, b) in factors.items():
        tensors |= {f"{name}.lora_a": a.T, f"{name}.lora_b": b.T}
    config = {"lora_parameters": {"rank": R, "scale": ALPHA / R}}
    write_tensors(folder / "adapters.safetensors", tensors, config)
    return folder, ()


def as_loralib(factors: Factors, folder: Path) -> tuple[Path, tuple[str, ...]]:
    tensors = {}
    for name, (a, b) in factors.items():
        tensors |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
    path = write_tensors(folder / "lora.safetensors", tensors)
    return path, ("--alpha", str(ALPHA), "--adapter-format", "loralib")


WRITERS = {"gguf": as_gguf, "torchtune": as_torchtune, "mlx": as_mlx, "loralib": as_loralib}


def test_every_format_gives_the_weights_of_peft(tiny, peft, tmp_path, capsys) -> None:
    """Added without the base: the heads are taken from the export's copy of its config."""
    out = tmp_path / "out"
    base = tiny.base("llama", TASK)
    result = call(capsys, "export", "--base", base, "--adapter", f"peft={peft}",
                  "--task", TASK, "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    expected = load_file(out / "weights" / "peft.safetensors")
    for kind, write in WRITERS.items():
        path, flags = write(factors_of(peft), tmp_path / kind)
        result = call(capsys, "add", out, "--adapter", f"{kind}={path}", *flags)
        assert result.code == 0, result.err
        found = load_file(out / "weights" / f"{kind}.safetensors")
        assert set(found) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=f"{kind} {name}")
        manifest = json.loads((out / "lora_export.json").read_text())
        record = manifest["adapters"][kind]
        assert record["format"] == kind
        assert record["tensors_applied"] == record["tensors_total"]


def test_verify_reads_it_as_it_was_read(tiny, peft, tmp_path, capsys) -> None:
    base, out = tiny.base("llama", TASK), tmp_path / "out"
    path, flags = as_loralib(factors_of(peft), tmp_path / "loralib")
    result = call(capsys, "export", "--base", base, "--adapter", f"x={path}", *flags, "--task",
                  TASK, "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads((out / "lora_export.json").read_text())["adapters"]["x"]["alpha"] == ALPHA
    verify = ("verify", out, "--base", base)
    assert call(capsys, *verify).code == 0
    moved = path.rename(tmp_path / "moved.safetensors")
    assert call(capsys, *verify).code == 3
    assert call(capsys, *verify, "--adapter", f"x={moved}", "--alpha", 3 * ALPHA).code == 5
    assert call(capsys, *verify, "--alpha", ALPHA).code == 2


def test_inspect_reads_them_too(tiny, peft, tmp_path, capsys) -> None:
    base = tiny.base("llama", TASK)
    for kind, write in WRITERS.items():
        path, flags = write(factors_of(peft), tmp_path / kind)
        result = call(capsys, "inspect", base, path, *flags, "--json")
        assert result.code == 0, result.err
        assert result.document["adapter"]["format"] == kind
        assert result.document["fit"]["fits"]


def test_a_recipe_says_how_each_adapter_is_read(tiny, peft, tmp_path, capsys) -> None:
    path, _ = as_loralib(factors_of(peft), tmp_path / "loralib")
    recipe = tmp_path / "recipe.yaml"
    lines = [
        {"name": "a", "source": str(peft)},
        {"name": "b", "source": str(path), "alpha": ALPHA, "format": "loralib"},
    ]
    table = {"base": str(tiny.base("llama", TASK)), "task": TASK, "adapters": lines}
    recipe.write_text(json.dumps({**table, "output": "out"}))
    result = call(capsys, "export", recipe)
    assert result.code == 0, result.err
    a, b = (load_file(tmp_path / "out" / "weights" / f"{name}.safetensors") for name in "ab")
    for name, values in a.items():
        np.testing.assert_array_equal(b[name], values)


def test_adapter_of_another_format_is_compared_in_peft(tiny, peft, tmp_path, capsys) -> None:
    path, _ = as_mlx(factors_of(peft), tmp_path / "mlx")
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", tiny.base("llama", TASK), "--no-latency",
                  "--adapter", f"mine={path}", "--task", TASK, "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    row = json.loads((out / "reports" / "parity.json").read_text())["graphs"]["mine"]
    assert row["verdict"] == "pass"
    assert row["effect"] > 1e-3


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--enable-lora", "yes,no"), "neither true nor false"),
        (("--enable-lora", "true,false,true"), "is given, but"),
        (("--alpha", "nan"), "alpha"),
        (("--alpha", "3"), "--alpha is given"),
        (("--adapter-format", "kohia"), "kohya"),
    ],
)
def test_wrong_flags(tiny, peft, tmp_path, capsys, *, flags, text) -> None:
    base, out = tiny.base("llama", TASK), tmp_path / "out"
    result = call(capsys, "export", "--base", base, "--adapter", f"a={peft}",
                  "--task", TASK, "--out", out, *flags)  # fmt: skip
    assert result.code == 2
    assert text in result.message
    assert not out.exists()
