"""Private APIs of torch, onnxscript and transformers are used in one module each."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lora_export

ROOT = Path(lora_export.__file__).parent

HOMES = {
    "torch": "core/torch_private.py",
    "onnxscript": "graph/optimize/onnxscript_private.py",
    "transformers": "graph/trace/transformers_private.py",
}

PRIVATE = {
    "torch": re.compile(r"torch\.(.*\.)?_\w"),  # a name with an underscore anywhere in the path
    "onnxscript": re.compile(r"onnxscript\."),
    "transformers": re.compile(r"transformers\.\w+\."),  # a name of a module of it
}


def imported_names(source: str) -> set[str]:
    """Return the full names that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("library", HOMES)
def test_a_library_s_private_names_are_imported_in_one_module(library: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if any(map(PRIVATE[library].match, imported_names(path.read_text("utf-8"))))
    }
    assert found == {HOMES[library]}


@pytest.mark.parametrize(
    ("source", "library", "private"),
    [
        ("from torch._subclasses.fake_tensor import FakeTensorMode", "torch", True),
        ("def f():\n    from torch.onnx._internal.exporter import _decomp", "torch", True),
        ("from torch.utils._pytree import tree_map", "torch", True),
        ("from torch.overrides import TorchFunctionMode", "torch", False),
        ("from onnxscript.optimizer import _constant_folding", "onnxscript", True),
        ("from transformers.cache_utils import DynamicCache", "transformers", True),
        ("from transformers import DynamicCache", "transformers", False),
    ],
)
def test_what_counts_as_private(source: str, library: str, private: bool) -> None:
    assert any(map(PRIVATE[library].match, imported_names(source))) is private
