"""Imports: a module that needs no heavy library does without, --help above all."""

from __future__ import annotations

import importlib
import json
import pkgutil

import pytest

import lora_export
from lora_export.cli import COMMANDS
from tests.cli.running import HEAVY, python

OWNERS = frozenset(
    {
        "lora_export.__main__",  # runs the command line
        "lora_export.triton.serving.metrics",  # Triton's own module, which only a server has
        "lora_export.triton.serving.model",
        "lora_export.triton.serving.probe",
        "lora_export.triton.serving.tokenizer",
        "lora_export.core.torch_private",
        "lora_export.graph.trace.alibi",
        "lora_export.graph.trace.promote",
        "lora_export.graph.trace.transformers_private",
        "lora_export.graph.optimize.attention_node",
        "lora_export.graph.template_build",
        "lora_export.graph.trace.conversion_rules",
        "lora_export.graph.trace.decompose",
        "lora_export.graph.optimize.rewrite",
        "lora_export.graph.nodes.node_match",
        "lora_export.graph.nodes.equal_sizes",
        "lora_export.graph.trace.empty_model",
        "lora_export.graph.trace.encoder_decoder",
        "lora_export.graph.trace.initializers",
        "lora_export.graph.trace.kv_cache",
        "lora_export.graph.trace.traced_experts",
        "lora_export.graph.optimize.complete",
        "lora_export.graph.optimize.fold",
        "lora_export.graph.optimize.settle",
        "lora_export.graph.templates.instantiate",
        "lora_export.graph.templates.shallow",
        "lora_export.graph.optimize.onnxscript_private",
        "lora_export.graph.trace.frequencies",
        "lora_export.graph.optimize.opset_nodes",
        "lora_export.graph.trace.repeated_layers",
        "lora_export.graph.trace.lengths",
        "lora_export.graph.trace.masks",
        "lora_export.graph.optimize.layer_parts",
        "lora_export.graph.trace.overflow",
        "lora_export.graph.trace.traced_pooling",
        "lora_export.graph.optimize.replicate_layers",
        "lora_export.graph.trace.trace",
    }
)
"""Modules that import torch, transformers or onnx_ir at the top: loaded by what traces."""

BLOCKED = (*HEAVY, "onnxruntime", "tokenizers", "tensorrt", "safetensors")

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lora_export.__path__, "lora_export.")
    if module.name not in OWNERS
)

IMPORT = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
failed = {}
for name in json.loads(sys.argv[2]):
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = repr(error)
print(json.dumps(failed))
"""

HELP = """
import os, sys
os._exit = sys.exit  # the process would end before it could tell
sys.argv = ["lora-export", *sys.argv[1:]]
from lora_export.__main__ import main
try:
    main()
finally:
    loaded = {name.partition(".")[0] for name in sys.modules}
    print(sorted(loaded & %r), file=sys.stderr)
"""

LIBRARIES = {
    "torch", "transformers", "peft", "onnxruntime", "onnx", "onnx_ir", "numpy", "tokenizers",
    "pydantic", "huggingface_hub", "ml_dtypes",
}  # fmt: skip


def test_modules_import_without_heavy_libraries() -> None:
    result = python("-c", IMPORT, json.dumps(BLOCKED), json.dumps(MODULES))
    assert json.loads(result.out) == {}
    assert len(MODULES) > 40


def test_owners_are_still_there_and_still_need_them() -> None:
    """A module that has become light leaves the list."""
    owners = sorted(OWNERS - {"lora_export.__main__"})
    result = python("-c", IMPORT, json.dumps(BLOCKED), json.dumps(owners))
    assert set(json.loads(result.out)) == set(owners)


def test_help_loads_no_library_beside_click() -> None:
    result = python("-c", HELP % LIBRARIES, "--help")
    assert result.code == 0, result.err
    assert result.err.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert name in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_no_heavy_library(name: str) -> None:
    light = LIBRARIES - {"pydantic", "numpy", "ml_dtypes"}
    result = python("-c", HELP % light, name, "--help")
    assert result.code == 0, result.err
    assert result.err.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["lora_export", *MODULES])
def test_public_names_exist_and_are_sorted_once(name: str) -> None:
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", []))
    assert len(names) == len(set(names))
    assert [each for each in names if not hasattr(module, each)] == []


def test_version_is_a_version() -> None:
    assert lora_export.__version__[0].isdigit()
