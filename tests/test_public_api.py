"""The public API: its names, what importing it costs, and what type checkers know of it."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lora_export
from lora_export.core import errors
from tests.cli.running import python

ROOT = Path(__file__).resolve().parents[1]
USER = ROOT / "tests/data/public_api/uses_everything.py"

FUNCTIONS = {
    "add", "bench", "convert", "inspect", "layout", "load_recipe", "merge_and_build",
    "merge_checkpoint", "open_export", "remove", "unmerge_checkpoint", "verify",
}  # fmt: skip
ARGUMENTS = {
    "AdapterSpec", "BundleSpec", "CombineSpec", "LatencySpec", "Mode", "Progress",
    "QuantizeSpec", "Recipe", "TritonSpec", "VerifySpec",
}  # fmt: skip
RESULTS = {
    "AdapterReport", "BenchReport", "Benchmark", "CheckpointReport", "Converted", "ExportReport",
    "FidelityReport", "FitReport", "GraphReport", "LatencyReport", "Manifest", "Merge",
    "MergeRecord", "ModelRepository", "Outcome", "PackedBundle", "PairReport", "ParityReport",
    "QuantizationReport", "Reports", "RuntimeLayout", "Session", "WrittenLayout",
}  # fmt: skip
ERRORS = {
    "AdapterError", "BundleError", "CheckpointError", "ExportDirectoryError", "FixedLengthError",
    "HubError", "InputError", "LatencyError", "LoraExportError", "MissingRuntimeError",
    "ParityError", "StorageError", "TiedParameterError", "UnsupportedError", "UsageError",
}  # fmt: skip

COST = """
import sys
before = set(sys.modules)
import lora_export
dir(lora_export), lora_export.__version__
added = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(added - set(sys.stdlib_module_names)))
"""

MYPY = """
[mypy]
strict = true
disallow_any_expr = true
disallow_any_explicit = true
mypy_path = {root}

[mypy-lora_export.*]
follow_imports = silent

[mypy-torch.*,transformers.*,peft.*,onnxscript.*,onnx_ir.*,sympy.*,tritonclient.*,google.*]
ignore_missing_imports = true
follow_imports = skip
"""

PYRIGHT = {
    "typeCheckingMode": "strict",
    "reportAny": "error",
    "reportExplicitAny": "error",
    "failOnWarnings": True,
}


def _imported_for_type_checkers() -> dict[str, str]:
    """Return the module of each name that `lora_export` imports under ``TYPE_CHECKING``."""
    tree = ast.parse(Path(lora_export.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_public_names_are_these() -> None:
    """A name that is added or goes is a decision: docs/stability.md, CHANGELOG.md."""
    expected = FUNCTIONS | ARGUMENTS | RESULTS | ERRORS | {"__version__"}
    assert set(lora_export.__all__) == expected
    assert len(lora_export.__all__) == len(expected)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) == ERRORS


def test_names_are_loaded_from_where_type_checkers_find_them() -> None:
    found = _imported_for_type_checkers()
    assert set(found) == set(lora_export.__all__) - {"__version__"}
    for name, module in found.items():
        value = getattr(lora_export, name)
        assert value is getattr(importlib.import_module(module), name)
        assert module in {value.__module__, "lora_export.core.errors"}


def _annotations(node: ast.ClassDef | ast.FunctionDef) -> list[ast.expr]:
    """Return the annotations of a function, or of a class' attributes and public methods."""
    if isinstance(node, ast.FunctionDef):
        given = ast.walk(node.args)
        own = [each.annotation for each in given if isinstance(each, ast.arg)]
        return [each for each in (*own, node.returns) if each is not None]
    attributes = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
    methods = [
        each
        for each in node.body
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
    ]
    return [*attributes, *(found for each in methods for found in _annotations(each))]


@pytest.mark.parametrize("module", sorted(set(_imported_for_type_checkers().values())))
def test_no_public_annotation_says_any(module) -> None:
    """Also where the user's file does not look, and in the rows that reports consist of."""
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
    whole = module.endswith(("_report", "_record", ".manifest"))
    wrong = {
        node.name
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        and (node.name in lora_export.__all__ or (whole and isinstance(node, ast.ClassDef)))
        for annotation in _annotations(node)
        for each in ast.walk(annotation)
        if isinstance(each, ast.Name) and each.id == "Any"
    }
    assert wrong == set()


def test_dir_shows_the_names_and_unknown_ones_are_refused() -> None:
    assert set(dir(lora_export)) == set(lora_export.__all__)
    with pytest.raises(AttributeError, match="'lora_export' has no attribute 'no_such_name'"):
        lora_export.no_such_name  # noqa: B018


def test_no_module_hides_a_public_name() -> None:
    """A package ``lora_export/verify`` would take the place of the function once imported."""
    modules = {path.stem for path in Path(lora_export.__file__).parent.iterdir()}
    assert modules & set(lora_export.__all__) == set()


def test_importing_the_package_loads_nothing_else() -> None:
    result = python("-c", COST)
    assert result.out.strip() == "['lora_export']", result.err


def test_the_users_file_uses_every_public_name() -> None:
    tree = ast.parse(USER.read_text("utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "lx"
    }
    assert used == set(lora_export.__all__)


def test_mypy_finds_types_and_no_any(tmp_path) -> None:
    pytest.importorskip("mypy")
    config = tmp_path / "mypy.ini"
    config.write_text(MYPY.format(root=ROOT))
    shutil.copy(USER, tmp_path / "user.py")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", config, "user.py",
         "--cache-dir", ROOT / ".mypy_cache" / "public_api"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_finds_types_and_no_any(tmp_path) -> None:
    """Basedpyright is pyright as a wheel, with node and a rule about Any."""
    pytest.importorskip("basedpyright", reason="the extra dev is not installed whole: make env")
    shutil.copy(USER, tmp_path / "user.py")
    settings = {"include": ["user.py"], "extraPaths": [str(ROOT)], **PYRIGHT}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "-p", ".", "--pythonpath", sys.executable],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_on_stability_names_what_is_public() -> None:
    page = (ROOT / "docs/stability.md").read_text("utf-8")
    assert set(lora_export.__all__) <= set(re.findall(r"`([A-Za-z_]+)`", page))
