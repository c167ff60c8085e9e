"""Every use of TensorRT in our source, against the API of five versions and of TensorRT for RTX."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lora_export
from lora_export.ondevice.trt.versions import HARDWARE_LEVELS, OLDEST, SINCE
from tests.helpers.tensorrt_api import API, Owners, check_source, owners_of

PACKAGE = Path(lora_export.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
OURS = {name: text for name, text in MODULES.items() if "tensorrt" in text}
CALLING = sorted(
    name
    for name, text in MODULES.items()
    if (name.startswith("ondevice/") or "import_tensorrt" in text)
    and not name.startswith("ondevice/ort/")  # ONNX Runtime's values have methods of the same names
)
"""What calls TensorRT or is handed something of it: what runs on a device, and what imports it."""


def _imports_tensorrt(source: str) -> bool:
    return any(
        (
            isinstance(node, ast.Import)
            and any(n.name.split(".")[0] == "tensorrt" for n in node.names)
        )
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorrt")
        for node in ast.walk(ast.parse(source))
    )


def test_tensorrt_is_called_in_ondevice_alone() -> None:
    importing = {name for name, text in OURS.items() if _imports_tensorrt(text)}
    assert {name.split("/")[0] for name in importing} == {"ondevice"}


def test_nobody_imports_it_another_way() -> None:
    """``from tensorrt import …`` and star imports would go unseen by the checker."""
    for name, text in OURS.items():
        for node in ast.walk(ast.parse(text)):
            assert not (
                isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt")
            ), name


RTX_ONLY = {
    f"ondevice/trt/{name}.py"
    for name in ("builder_capabilities", "compiled_context", "engine_validity")
}
"""Modules that call TensorRT for RTX alone."""


@pytest.mark.parametrize("name", CALLING)
def test_tensorrt_for_rtx_has_what_is_used(name: str) -> None:
    since = dict.fromkeys(SINCE, (1, 7))
    owners = owners_of(list(OURS.values()))
    findings, _ = check_source(MODULES[name], owners, since, "tensorrt-rtx")
    assert [f"{name}:{each.line}: {each.text}" for each in findings] == []


@pytest.mark.parametrize("name", [each for each in CALLING if each not in RTX_ONLY])
def test_every_version_has_what_is_used(name: str) -> None:
    findings, _ = check_source(MODULES[name], owners_of(list(OURS.values())), SINCE)
    assert [f"{name}:{each.line}: {each.text}" for each in findings] == []


def test_what_was_checked_is_all_of_it() -> None:
    """Every mention of ``trt.`` in code that runs was resolved; the main calls are among them."""
    owners = owners_of(list(OURS.values()))
    checked: list[str] = []
    for name, text in OURS.items():
        if not name.startswith("ondevice/") or name in RTX_ONLY:
            continue
        _, found = check_source(text, owners, SINCE)
        checked += found
        tree = ast.parse(text)
        annotations = {
            id(inner)
            for node in ast.walk(tree)
            for annotation in _annotations(node)
            for inner in ast.walk(annotation)
        }
        mentions = [
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "trt"
            and id(node) not in annotations
        ]
        resolved = [each.removeprefix("trt.") for each in found if each.startswith("trt.")]
        assert sorted(mentions) == sorted(each for each in resolved if each != "__version__"), name
    assert {
        "Builder.create_network",
        "Builder.build_serialized_network",
        "OnnxParser.parse",
        "IOptimizationProfile.set_shape",
        "IBuilderConfig.set_timing_cache",
        "INetworkDefinition.mark_weights_refittable",
        "Runtime.deserialize_cuda_engine",
        "Refitter.get_missing_weights",
        "Refitter.refit_cuda_engine",
        "OnnxParserRefitter.refit_from_file",
        "IExecutionContext.execute_async_v3",
        "IProgressMonitor.step_complete",
        "BuilderFlag.REFIT_INDIVIDUAL",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    } <= set(checked)
    assert len(set(checked)) > 90


def _annotations(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.arg):
        return [node.annotation] if node.annotation else []
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    if isinstance(node, ast.FunctionDef):
        return [node.returns] if node.returns else []
    return []


@pytest.mark.parametrize("level", HARDWARE_LEVELS)
def test_hardware_levels_are_members_from_their_version_on(level: str) -> None:
    member = HARDWARE_LEVELS[level].member
    since = SINCE.get(f"HardwareCompatibilityLevel.{member}", OLDEST)
    for version in API.versions():
        assert API(version).has("HardwareCompatibilityLevel", member) == (version >= since)


def test_guards_agree_with_the_data() -> None:
    for name, since in SINCE.items():
        owner, _, member = name.partition(".")
        for version in API.versions():
            assert API(version).has(owner, member) == (version >= since), (name, version)


HEAD = "import tensorrt as trt\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("trt.BuilderFlag.FP16", "(11, 4) has no BuilderFlag.FP16"),
        ("trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "has no NetworkDefinition"),
        ("trt.Bilder(1)", "has no trt.Bilder"),
        ("b = trt.Builder(1)\nb.platform_has_fast_fp16", "(11, 4) has no Builder.platform"),
        ("b = trt.Builder(1)\nb.create_network(1, 2)", "does not take"),
        ("b = trt.Builder(1)\nb.create_network(flag=1)", "does not take"),
        ("b = trt.Builder()", "does not take"),
        ("c = trt.Builder(1).create_builder_config()\nc.max_workspace = 1", "no IBuilderConfig"),
        ("def f(p: trt.OnnxParser):\n    p.load_model_proto(b'')", "(10, 3): OnnxParser.load"),
        ("def f(e: trt.ICudaEngine):\n    e.device_memory_size", "(11, 4) has no ICudaEngine"),
        ("def f(x):\n    x.deserialize_cuda_engine(b'')", "cannot tell of what"),
        ("trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY", "(10, 3) has no Hardware"),
        ("class L(trt.ILogger):\n    def log(self, level, text): ...", "other arguments than"),
        ("r = trt.Refitter(1, 2)\nr.get_weights_prototype('a').count", "has no Weights.count"),
        ("m = import_tensorrt()\nm.init_libnvinfer()", "has no trt.init_libnvinfer"),
        ("m = import_tensorrt()\nm.Runtime(1).load()", "has no Runtime.load"),
    ],
)  # fmt: skip
def test_the_checker_finds(code: str, text: str) -> None:
    findings, _ = check_source(HEAD + code, Owners(), SINCE)
    assert any(text in each.text for each in findings), findings


def test_the_checker_accepts_a_guard() -> None:
    code = (
        'if has(version, "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"):\n'
        "    x = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY\n"
    )
    assert check_source(HEAD + code, Owners(), SINCE)[0] == []
    wrong = {**SINCE, "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": (10, 3)}
    assert check_source(HEAD + code, Owners(), wrong)[0] != []
