"""A base with adapters of three widths, built with ``--mode batched``, and what PEFT computes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import make_recipe
from tests.cli.exports import peft_model, run_torch
from tests.end_to_end.batched.example import (
    LABELS,
    TASK,
    feeds_of,
)


@pytest.fixture(scope="package")
def base(tiny):
    return tiny.base("roberta", TASK)


@pytest.fixture(scope="package")
def adapters(tiny, base):
    return {
        "mnli": tiny.adapter(base, seed=61, labels_count=3),
        "sst2": tiny.adapter(base, seed=62, labels_count=2, r=7, use_rslora=True),
        "five": tiny.adapter(base, seed=63, labels_count=5, r=2, target_modules=["key", "dense"]),
    }


@pytest.fixture(scope="package")
def expected(base, adapters):
    """PEFT's outputs for each adapter, and those of the base's own graph, for eight rows."""
    return {
        name: run_torch(peft_model(base, each, TASK, labels_count=LABELS[name]), feeds_of(8))
        for name, each in adapters.items()
    }


@pytest.fixture(scope="package")
def built(base, adapters, tmp_path_factory):
    table = {
        "base": str(base),
        "adapters": [{"name": name, "source": str(each)} for name, each in adapters.items()],
        "output": str(tmp_path_factory.mktemp("batched") / "out"),
        "mode": "batched",
    }
    return merge_and_build(make_recipe(table, folder=Path("/")))


@pytest.fixture
def export_dir(built, tmp_path):
    return shutil.copytree(built.output, tmp_path / "out")
