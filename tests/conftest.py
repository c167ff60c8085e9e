"""Settings of every test: no network, one graph cache, tiny models made once, fixed seeds.

``LORA_EXPORT_TEST_CACHE=FOLDER`` keeps the traced graphs between runs; the cache's key covers the
source that traces and folds, so an old folder is never wrong.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before the first import of huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from hypothesis import settings

import tests.helpers.cores  # noqa: F401  (before torch and ONNX Runtime are loaded)
from tests.helpers.models import TinyModels

if TYPE_CHECKING:
    from collections.abc import Iterator

# Whether or not the entry point is installed: under one name it is one plugin.
pytest_plugins = ["lora_export.pytest_plugin"]

# A first call imports what it needs: wall time per example says nothing here. Derandomized, so that
# a failure in CI is a failure everywhere.
settings.register_profile("tests", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("tests")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadgroup":
        return None
    from tests.helpers.groups import FolderScheduling

    return FolderScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep traced graphs in one folder per run: each architecture is traced once."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("LORA_EXPORT_TEST_CACHE") or shared / "graph-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_EXPORT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries that still draw from the global state)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny random checkpoints and adapters, made once per session; copy before changing one."""
    return TinyModels(tmp_path_factory.mktemp("tiny"))
