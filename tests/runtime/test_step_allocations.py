"""Memory that a step of a decoder of the form ``ort`` allocates: no copy of its cache.

Malloc is counted in a process of its own; the same script is behind a row of `bench/decoder.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.builds import build
from tests.helpers.chat_models import save_chat_adapter, save_chat_base

BENCH = Path("bench").resolve()
CONTEXTS = (128, 1024)
LAYERS, WIDTH = 2, 64
GROWTH = (CONTEXTS[1] - CONTEXTS[0]) * LAYERS * 2 * WIDTH * 4
"""The bytes by which keys and values of the second context are more."""


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> Path:
    if shutil.which("cc") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and glibc")
    library = tmp_path_factory.mktemp("counter") / "allocated.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, BENCH / "_allocated.c"],
                   check=True)  # fmt: skip
    return library


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("allocations")
    base = save_chat_base(
        "Llama", root / "base", hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=4,
        head_dim=16, num_hidden_layers=LAYERS, max_position_embeddings=2048,
    )  # fmt: skip
    adapter = save_chat_adapter(base, root / "a", seed=1, r=4)
    return {
        form: build(base, {"one": adapter}, root / form, task="text-generation",
                    graph_form=form).output
        for form in ("ort", "portable")
    }  # fmt: skip


def grown(counter: Path, how: str, export: Path) -> int:
    """Return by how many bytes a step allocates more behind the second context."""
    words = [sys.executable, BENCH / "_allocated_steps.py", how, export, *map(str, CONTEXTS)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE,
                          env=os.environ | {"LD_PRELOAD": str(counter)})  # fmt: skip
    sizes = json.loads(done.stdout)
    return sizes[str(CONTEXTS[1])] - sizes[str(CONTEXTS[0])]


@pytest.mark.parametrize("how", ["generate", "open_export"])
def test_a_step_allocates_no_cache(how, counter, exports):
    """It allocates the scores of each head over all positions, which grow."""
    assert grown(counter, how, exports["ort"]) < 0.1 * GROWTH


def test_a_portable_graph_does_and_is_seen_to(counter, exports):
    assert grown(counter, "generate", exports["portable"]) > GROWTH
