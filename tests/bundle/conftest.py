"""Exports of each kind, verified and bundled once for all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.builds import build
from tests.helpers.bundles import bare_site, unpacked

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of a device: NumPy and ONNX Runtime."""
    return bare_site(tmp_path_factory.mktemp("site") / "packages")


@pytest.fixture(scope="session")
def exports(tiny, tmp_path_factory) -> Any:
    """Return a function: kind → an export of it, verified, with the adapters it holds."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("exports")

    def export(kind: str) -> Path:
        if kind not in made:
            made[kind] = _build(tiny, kind, root / kind)
        return made[kind]

    return export


@pytest.fixture(scope="session")
def bundles(exports, tmp_path_factory) -> Any:
    """Return a function: kind → its bundle, unpacked; copy it before changing it."""
    made: dict[str, Path] = {}

    def bundle(kind: str) -> Path:
        if kind not in made:
            made[kind] = unpacked(exports(kind), tmp_path_factory.mktemp(f"bundle-{kind}"))
        return made[kind]

    return bundle


_SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "merged": ("bert", "text-classification", {}),
    "half": ("bert", "text-classification", {"dtype": "float16"}),
    "swappable": ("bert", "text-classification", {"mode": "swappable"}),
    "batched": ("bert", "text-classification", {"mode": "batched"}),
    "decoder": ("gpt2", "text-generation", {}),
    "static": ("gpt2", "text-generation", {"cache_length": 70}),
    "two": ("t5", "text2text-generation", {}),
}


def _build(tiny, kind: str, output: Path) -> Path:
    model, task, settings = _SETTINGS[kind]
    base = tiny.base(model, task)
    adapters = {
        name: tiny.adapter(base, task=task, seed=seed, strength=0.3)
        for name, seed in (("one", 1), ("two", 2))
    }
    outcome = build(base, adapters, output, task=task, verify={"enabled": True}, **settings)
    assert outcome.exit_code() == 0
    return output
