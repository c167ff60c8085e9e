"""PEFT's matrix: architectures × targets × variants × dtypes, drawn by Hypothesis, through `merge`.

The oracle is ``merge_and_unload`` in float64, computed on the values that the files hold, and the
unmerged forward in float32. `tests/commands/test_merge.py` has chosen cases with heads,
`tests/adapters/test_variants.py` each kind of module, Conv2d and Conv1D among them: here settings
meet each other. ``LORA_EXPORT_EXAMPLES`` sets how many are drawn.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_export.commands.merge import merge_checkpoint
from lora_export.core.adapter_spec import AdapterSpec
from tests.helpers.builds import model_values
from tests.helpers.experts import expert_base
from tests.helpers.models import load_tiny, save_tiny_base

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = int(os.environ.get("LORA_EXPORT_EXAMPLES", "25"))
GENERATION, CLASSIFICATION = "text-generation", "text-classification"
DTYPES = ("float32", "float16", "bfloat16")
IDS = torch.arange(3, 15)[None]

LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Architecture:
    """The modules of a tiny model that can be adapted."""

    task: str
    linear: tuple[str, ...]
    embedding: str
    saved: tuple[str, ...]
    biases: bool = False
    parameters: tuple[str, ...] = ()
    conv1d: bool = False


ARCHITECTURES = {
    "bert": Architecture(
        CLASSIFICATION, ("query", "value", "dense"), "word_embeddings", ("pooler",), biases=True
    ),
    "distilbert": Architecture(
        CLASSIFICATION, ("q_lin", "lin1", "lin2"), "word_embeddings", ("pre_classifier",),
        biases=True,
    ),
    "gpt2": Architecture(
        GENERATION, ("c_attn", "c_proj", "c_fc"), "wpe", ("ln_f",), biases=True, conv1d=True
    ),
    "llama": Architecture(
        GENERATION, (*LLAMA_LINEAR, "gate_proj", "down_proj"), "embed_tokens", ("lm_head", "norm")
    ),
    "mixtral": Architecture(
        GENERATION, LLAMA_LINEAR, "embed_tokens", ("lm_head",),
        parameters=("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"),
    ),
    "gpt-oss": Architecture(
        GENERATION, LLAMA_LINEAR, "embed_tokens", ("lm_head",),
        parameters=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """One cell of the matrix."""

    kind: str
    base_dtype: str
    adapter_dtype: str
    settings: dict[str, Any] = field(hash=False)


@st.composite
def cells(draw: st.DrawFn) -> Drawn:
    """Draw a base, and settings that PEFT allows together."""
    kind = draw(st.sampled_from(sorted(ARCHITECTURES)))
    row = ARCHITECTURES[kind]
    some = st.lists(st.sampled_from(row.linear), min_size=1, max_size=3, unique=True)
    targets = draw(some)
    found: dict[str, Any] = {
        "r": draw(st.integers(1, 5)),
        "lora_alpha": draw(st.integers(1, 9)),
        "use_rslora": draw(st.booleans()),
        "rank_pattern": draw(st.dictionaries(st.sampled_from(targets), st.integers(1, 6))),
        "alpha_pattern": draw(
            st.dictionaries(st.sampled_from([*targets, r".*\.1\..*"]), st.integers(1, 20))
        ),
    }
    variant = draw(st.sampled_from(["plain", "dora", "lora_bias", "parameters"]))
    if variant == "parameters" and row.parameters:
        found["target_parameters"] = draw(
            st.lists(st.sampled_from(row.parameters), min_size=1, unique=True)
        )
    elif variant == "dora":
        found["use_dora"] = True
    elif variant == "lora_bias" and row.biases:
        found["lora_bias"] = True
    if draw(st.booleans()):
        found["modules_to_save"] = [draw(st.sampled_from(row.saved))]
    tokens = draw(st.sampled_from(["none", "embedding", "rows"]))
    if tokens == "embedding" and not found.get("lora_bias"):
        targets = [*targets, row.embedding]
    elif tokens == "rows" and row.embedding != "wpe":
        indices = draw(st.lists(st.integers(0, 30), min_size=1, max_size=4, unique=True))
        found["trainable_token_indices"] = {row.embedding: indices}
    if row.biases:
        found["bias"] = draw(st.sampled_from(["none", "all", "lora_only"]))
    if row.conv1d:
        found["fan_in_fan_out"] = draw(st.booleans())
    if row.embedding not in targets and draw(st.booleans()):
        found["layers_to_transform"] = [1]
    dtypes = st.sampled_from(DTYPES)
    return Drawn(kind, draw(dtypes), draw(dtypes), {**found, "target_modules": targets})


def base_of(kind: str, dtype: str, folder: Path) -> Path:
    if kind in {"mixtral", "gpt-oss"}:
        expert_base(kind, folder)
        if dtype != "float32":
            model = load_tiny(folder, GENERATION, dtype=dtype)
            shutil.rmtree(folder)
            model.save_pretrained(folder)
        return folder
    return save_tiny_base(kind, folder, ARCHITECTURES[kind].task, dtype=dtype)


def adapted(cell: Drawn, base: Path, folder: Path) -> Any:
    """Save an adapter with random tensors in its dtype; return PEFT's model of it, in float32."""
    row = ARCHITECTURES[cell.kind]
    task_type = "CAUSAL_LM" if row.task == GENERATION else "SEQ_CLS"
    model = load_tiny(base, row.task, labels_count=3, dtype="float32")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type=task_type, **cell.settings))
    generator = torch.Generator().manual_seed(1)
    kept = getattr(torch, cell.adapter_dtype)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, generator=generator) * 0.1
                grown = value * 1.5 if "magnitude" in name else noise
                value.copy_(grown.to(kept).float())  # what the file will hold
    wrapped.eval().to(kept).save_pretrained(str(folder))
    model = load_tiny(base, row.task, labels_count=3, dtype="float32")
    return peft.PeftModel.from_pretrained(model, str(folder)).float().eval()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The bases that were made so far; filled as they are drawn."""
    root = tmp_path_factory.mktemp("bases")
    return _Bases(root)


class _Bases(dict[tuple[str, str], Path]):
    def __init__(self, root: Path) -> None:
        self._root = root

    def __missing__(self, key: tuple[str, str]) -> Path:
        self[key] = base_of(*key, self._root / "-".join(key))
        return self[key]


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(cell=cells())
def test_merge_is_that_of_peft(cell: Drawn, bases: dict[tuple[str, str], Path]) -> None:
    base = bases[cell.kind, cell.base_dtype]
    task = ARCHITECTURES[cell.kind].task
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        model = adapted(cell, base, folder / "adapter")
        with torch.no_grad():
            unmerged = model(IDS).logits
            wanted = model_values(model.double().merge_and_unload())
        spec = AdapterSpec(name="a", source=str(folder / "adapter"))
        merge_checkpoint(base, [spec], folder / "out")
        merged = load_tiny(folder / "out", task, labels_count=3)
        assert_values(merged.state_dict(), wanted)
        if cell.base_dtype == "float32":
            with torch.no_grad():
                logits = merged(IDS).logits
            torch.testing.assert_close(logits, unmerged, rtol=1e-5, atol=1e-5)


def assert_values(found: dict[str, torch.Tensor], wanted: dict[str, np.ndarray]) -> None:
    """Compare with the float64 result: itself to 1e-6, or what it is rounded to."""
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        exact = torch.from_numpy(wanted[name])
        if not value.is_floating_point():
            assert torch.equal(value, exact), name
        elif value.dtype == torch.float32:
            error = torch.linalg.norm(value.double() - exact)
            assert error <= 1e-6 * torch.linalg.norm(exact), name
        else:
            assert_rounded(name, value, exact)


def assert_rounded(name: str, value: torch.Tensor, exact: torch.Tensor) -> None:
    """Require the nearest value, where float32's own error does not reach the other side."""
    rounded = exact.to(value.dtype)
    apart = value != rounded
    slack = 1e-6 * exact.abs().max()
    ours, theirs = (each[apart].double() - exact[apart] for each in (value, rounded))
    assert bool(((ours.abs() - theirs.abs()).abs() <= 2 * slack).all()), name
    assert apart.double().mean() <= 0.01, name


def test_merged_shards_hold_no_other_dtype(bases: dict[tuple[str, str], Path]) -> None:
    base = bases["mixtral", "bfloat16"]
    cell = Drawn("mixtral", "bfloat16", "float16", {
        "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"], "r": 2,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        adapted(cell, base, folder / "adapter")
        spec = AdapterSpec(name="a", source=str(folder / "adapter"))
        merge_checkpoint(base, [spec], folder / "out")
        tensors = load_file(folder / "out" / "model.safetensors")
        assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
