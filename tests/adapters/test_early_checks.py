"""Misfits that headers show before the graph is traced; a doubtful one is left to later checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lora_export.adapters.early_checks import refuse_misfit
from lora_export.adapters.fit import PREFIXES
from lora_export.adapters.formats.detect import read_adapter
from lora_export.commands import build_inputs
from lora_export.core.errors import AdapterError
from lora_export.core.name_conversions import new_name
from lora_export.graph import graph_export as export
from lora_export.weights.checkpoint import open_checkpoint
from tests.cli.running import HEAVY, call, command
from tests.helpers.handmade import BERT_SHAPES, save_adapter, save_checkpoint, shapes_of_lora
from tests.helpers.models import KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CONFIG = {"hidden_size": 8, "num_hidden_layers": 2}
QUERY = "bert.encoder.layer.0.attention.self.query"
GPT2 = {f"transformer.h.{layer}.attn.c_attn": (24, 8) for layer in range(2)}


def refuse_early(
    folder: Path,
    modules: dict[str, tuple[int, int]],
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    drop: tuple[str, ...] = (),
    **config: Any,
) -> None:
    base = open_checkpoint(
        save_checkpoint(folder / "base", shapes or BERT_SHAPES, **{**CONFIG, **config})
    )
    adapter = save_adapter(folder / "adapter", shapes_of_lora(modules))
    read = read_adapter(adapter, name="a", source="the/adapter")
    refuse_misfit(read, base.tensors, base.config, drop=drop)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (
            GPT2,
            "2 tensor(s) of adapter 'the/adapter' match nothing in the base:\n  transformer.h.0",
        ),
        ({QUERY.replace("0", "2"): (8, 8)}, "match nothing in the base"),
        ({QUERY: (8, 12)}, f"{QUERY}.weight: the update is [8, 12], the weight [8, 8]"),
    ],
    ids=["another architecture", "a deeper base", "a wider base"],
)
def test_misfit_is_named_as_the_graph_would_name_it(tmp_path: Path, modules, words) -> None:
    with pytest.raises(AdapterError) as caught:
        refuse_early(tmp_path, modules)
    assert words in caught.value.message
    assert "Is this the right base and task? It was trained on 'some/base'." in str(
        caught.value.hint
    )


@pytest.mark.parametrize(
    ("modules", "settings"),
    [
        ({QUERY: (8, 8)}, {}),
        ({"encoder.layer.1.attention.self.value": (8, 8)}, {}),
        ({QUERY: (8, 8), "classifier": (3, 8), "lm_head": (20, 8)}, {}),
        (GPT2, {"model_type": "of-tomorrow"}),
        (GPT2, {"drop": ("transformer.*",)}),
        ({QUERY.replace("0", "2"): (8, 8)}, {"num_hidden_layers": 3}),
        ({QUERY.replace("0", "2"): (8, 8)}, {"num_hidden_layers": None}),
        ({QUERY: (12, 12)}, {"hidden_size": 12}),
    ],
    ids=[
        "fits",
        "bare names",
        "heads, which may be tied",
        "unknown model type",
        "dropped",
        "base without one of its layers",
        "depth unknown",
        "base that is not of its config",
    ],
)
def test_what_headers_leave_open_is_left_to_the_graph(tmp_path: Path, modules, settings) -> None:
    refuse_early(tmp_path, modules, **settings)


def test_a_misfit_is_refused_before_anything_is_traced(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", **CONFIG)
    adapter = save_adapter(tmp_path / "adapter", shapes_of_lora(GPT2), task_type=None)
    result = command("export", "--base", base, "--adapter", adapter, "--out", tmp_path / "out",
                     "--task", "feature-extraction", without=HEAVY)  # fmt: skip
    assert result.code == 3, result.err
    assert "match nothing in the base" in result.message
    assert not (tmp_path / "out").exists()


MISFITS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "gpt2 on bert": ("gpt2", {}, "bert", {}),
    "bert on gpt2": ("bert", {}, "gpt2", {}),
    "wider": ("gpt2", {"n_embd": 48}, "gpt2", {}),
    "deeper": ("bert", {"num_hidden_layers": 3}, "bert", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MISFITS)
def test_headers_and_graph_give_the_same_error(
    tiny: TinyModels, tmp_path: Path, capsys, monkeypatch, case: str
) -> None:
    kind, changes, base_kind, settings = MISFITS[case]
    task = {**TASKS, "bert": "fill-mask"}
    own = tiny.base(kind, task[kind], labels_count=None, **changes)
    adapter = tiny.adapter(own, task=task[kind], labels_count=None)
    base = tiny.base(base_kind, task[base_kind], labels_count=None, **settings)

    def refused() -> tuple[int, str]:
        result = call(capsys, "export", "--base", base, "--adapter", adapter, "--quiet",
                      "--task", task[base_kind], "--out", tmp_path / "out")  # fmt: skip
        return result.code, result.message

    with monkeypatch.context() as patch:
        patch.setattr(export, "_trace_and_fold", None)
        early = refused()
    monkeypatch.setattr(build_inputs, "require_layers", lambda *_: None)
    assert early == refused()
    assert early[0] == 3


TASKS = {
    "distilbert": "fill-mask",
    "gpt2": "text-generation",
    "llama": "text-generation",
    "llama-tied": "text-generation",
    "vit": "image-classification",
    "t5": "text2text-generation",
    "bart": "text2text-generation",
    "whisper": "automatic-speech-recognition",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_adapter_of_a_base_is_refused(tiny: TinyModels, kind: str) -> None:
    task = TASKS.get(kind, "text-classification")
    base = tiny.base(kind, task)
    adapter = tiny.adapter(base, task=task, target_modules="all-linear")
    checkpoint = open_checkpoint(base)
    refuse_misfit(
        read_adapter(adapter, name="a", source="a"), checkpoint.tensors, checkpoint.config
    )


@pytest.mark.slow
@pytest.mark.parametrize("model_type", PREFIXES)
def test_the_table_s_families_keep_the_names_of_their_layers(model_type: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    from lora_export.graph.trace.conversion_rules import conversions_of

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(model_type))
    assert f"{model.base_model_prefix}." == PREFIXES[model_type]
    rules = conversions_of(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            for known in (name, PREFIXES[model_type] + name):
                assert new_name(known, rules).name == known
