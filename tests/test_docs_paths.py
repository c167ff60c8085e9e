"""Every file and module that the documentation and the docstrings mention exists."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRACKED = frozenset(
    subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    ).splitlines()
)
PAGES = sorted(
    path
    for path in TRACKED
    if path.endswith(".md") and not path.startswith("tests/data/") and (ROOT / path).is_file()
)
SOURCES = sorted(
    path
    for path in TRACKED
    if re.match(r"(lora_export|tools|bench|recipes)/.*\.py$", path) and (ROOT / path).is_file()
)

FOREIGN = frozenset(
    {
        "backends/default/ops.py",  # bitsandbytes
        "compressors/pack_quantized/base.py",  # compressed-tensors
        "convert_hf_to_gguf.py",  # llama.cpp
        "convert_lora_to_gguf.py",  # llama.cpp
        "docs/Changelog.md",  # TensorRT's ONNX parser
        "docs/operators.md",
        "numpy.py",  # a file that must not lie in a bundle
        "inference/kernel.py",  # DeepSeek-V3
        "integrations/mxfp4.py",  # transformers
        "mlx_lm/LORA.md",  # mlx-lm
        "qlinear_cuda_old.py",  # AutoGPTQ
        "quantization/lifecycle/forward.py",  # compressed-tensors
        "tuners/lora/layer.py",  # PEFT
        "tuners/tuners_utils.py",
        "utils/model.py",  # GPTQModel
        "utils/packing_utils.py",  # AutoAWQ
    }
)
"""Files of other projects, and of a user."""
OTHER_PACKAGES = ("peft/",)
"""Beginnings of paths in other packages."""

BEFORE_THE_MOVE = {
    "docs/adr/0002-exports-layer.md": {"pipeline.py", "maintenance.py", "steps.py"},
}
"""Names that a decision keeps because they were true when it was made; it says so."""

_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"(?:[\w-]+/)*[\w-]+\.(?:py|c)|(?:[\w-]+/)+[\w.-]+\.md")
_FOLDER = re.compile(r"(?:lora_export|tests|tools|bench|docs|docker|recipes)/(?:[\w.-]+/)*[\w.-]*")
_MODULE = re.compile(r"lora_export(?:\.[A-Za-z_]\w*)+")
_PLACEHOLDER = re.compile(r"N{4}|NAME")
_SUFFIXES = (".json", ".merge", ".next")  # files that begin with the package's name

PACKAGES = sorted({path.split("/")[1] for path in TRACKED if re.match(r"lora_export/\w+/", path)})
_BELOW = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
_FILE_NAMES = (".json", ".npz", ".onnx", ".safetensors", ".html", ".tar", ".yaml")
NO_MODULES = frozenset({"base.ties", "base.untied", "graph.model"})
"""Keys of the manifest and attributes, which look like modules of a package."""


@cache
def _endings() -> frozenset[str]:
    """Return every tracked path, and every ending of one that begins at a folder."""
    endings = set()
    for path in TRACKED:
        parts = path.split("/")
        endings |= {"/".join(parts[start:]) for start in range(len(parts))}
    return frozenset(endings)


def _words(text: str) -> set[str]:
    """Return the words of the code spans of a text."""
    spans = re.findall(r"`+([^`\n]+)`+", text)
    return {word.strip(".,;:()") for span in spans for word in span.split()}


def _module_exists(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:count])
        for file in (base / "__init__.py", base.with_suffix(".py"), base.with_suffix(".c")):
            if file.is_file():
                rest = parts[count:]
                return not rest or bool(re.search(rf"\b{rest[0]}\b", file.read_text("utf-8")))
    return False


def _missing(text: str) -> set[str]:
    """Return what a text mentions in code spans, as files and modules, and what does not exist."""
    wrong = set()
    for word in _words(text) - FOREIGN:
        if _PLACEHOLDER.search(word) or word.startswith(OTHER_PACKAGES):
            continue
        if _FILE.fullmatch(word):
            exists = word in _endings()
        elif _FOLDER.fullmatch(word):
            exists = (ROOT / word).exists()
        elif _MODULE.fullmatch(word) and not word.endswith(_SUFFIXES):
            exists = _module_exists(word)
        else:
            continue
        if not exists:
            wrong.add(word)
    return wrong


def _slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip("# \n").lower())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_mentions_exists(page: str) -> None:
    text = _FENCED.sub("", (ROOT / page).read_text("utf-8"))
    assert _missing(text) - BEFORE_THE_MOVE.get(page, set()) == set()


@pytest.mark.parametrize("page", PAGES)
def test_where_a_page_links_to_exists(page: str) -> None:
    path = ROOT / page
    text = _FENCED.sub("", path.read_text("utf-8"))
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        if not linked.exists():
            wrong.append(target)
        elif anchor and linked.suffix == ".md":
            lines = _FENCED.sub("", linked.read_text("utf-8")).splitlines()
            if anchor not in {_slug(line) for line in lines if line.startswith("#")}:
                wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_what_the_examples_of_a_page_import_exists(page: str) -> None:
    blocks = "".join(_FENCED.findall((ROOT / page).read_text("utf-8")))
    lines = re.findall(r"^\s*from (lora_export[\w.]*) import ([\w, ]+)", blocks, re.MULTILINE)
    wanted = {f"{module}.{name.strip()}" for module, names in lines for name in names.split(",")}
    assert {name for name in wanted if not _module_exists(name)} == set()


def _missing_below(text: str) -> set[str]:
    """Return the modules that a text mentions by their names below the package, and that are not.

    Only code is asked: in pages such a word is mostly a key of a recipe or of a report.
    """
    words = {word for word in _words(text) - NO_MODULES if _BELOW.fullmatch(word)}
    return {
        word
        for word in words
        if not word.endswith(_FILE_NAMES) and not _module_exists(f"lora_export.{word}")
    }


def test_what_the_code_mentions_exists() -> None:
    texts = {source: (ROOT / source).read_text("utf-8") for source in SOURCES}
    found = {source: _missing(text) | _missing_below(text) for source, text in texts.items()}
    assert {source: words for source, words in found.items() if words} == {}


def test_a_path_that_does_not_exist_is_found() -> None:
    assert _missing("`core/errors.py`, `errors.py`, `lora_export.core.errors.UsageError`") == set()
    assert _missing("see `core/nowhere.py`") == {"core/nowhere.py"}
    assert _missing("see ``lora_export.core.nowhere``.") == {"lora_export.core.nowhere"}
    assert _missing("in `lora_export/nowhere/`") == {"lora_export/nowhere/"}
    assert _missing("`pipeline.py`") == {"pipeline.py"}
    assert _missing_below("`core.errors`, `core.errors.UsageError`, `core.json`") == set()
    assert _missing_below("see ``core.nowhere`` and `base.targets`") == {
        "core.nowhere",
        "base.targets",
    }
