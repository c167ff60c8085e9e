"""One base with three adapters, exported in each mode, and what PEFT computes."""

from __future__ import annotations

import pytest

from tests.cli.exports import peft_model, run_torch
from tests.helpers.builds import build
from tests.runtime.session.example import FEEDS, TASK


@pytest.fixture(scope="package")
def base(tiny):
    return tiny.base("bert", TASK)


@pytest.fixture(scope="package")
def adapters(tiny, base):
    return {
        "a": tiny.adapter(base, seed=21),
        "b": tiny.adapter(base, seed=22, r=7, use_rslora=True),
        "c": tiny.adapter(base, seed=23, r=2, alpha=3),
    }


@pytest.fixture(scope="package")
def export(base, adapters, tmp_path_factory):
    """An export that holds the adapter ``a``."""
    return build(base, {"a": adapters["a"]}, tmp_path_factory.mktemp("session") / "out").output


@pytest.fixture(scope="package")
def swappable(base, adapters, tmp_path_factory):
    """A swappable export of all three."""
    folder = tmp_path_factory.mktemp("swappable")
    return build(base, adapters, folder / "out", mode="swappable").output


@pytest.fixture(scope="package")
def batched(base, adapters, tmp_path_factory):
    """A batched export of all three."""
    folder = tmp_path_factory.mktemp("batched")
    return build(base, adapters, folder / "out", mode="batched").output


@pytest.fixture(scope="package")
def by_peft(base, adapters):
    return {
        name: run_torch(peft_model(base, each, TASK, labels_count=3), FEEDS)
        for name, each in adapters.items()
    }
