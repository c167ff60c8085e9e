"""A base with three adapters, and an export with one of them."""

from __future__ import annotations

import shutil

import pytest

from tests.exports.merged_adapters.example import TASK
from tests.helpers.builds import build


@pytest.fixture(scope="package")
def base(tiny):
    return tiny.base("bert", TASK)


@pytest.fixture(scope="package")
def one(tiny, base):
    return tiny.adapter(base, seed=11)


@pytest.fixture(scope="package")
def two(tiny, base):
    return tiny.adapter(base, seed=12, r=7, use_rslora=True, target_modules=["key", "dense"])


@pytest.fixture(scope="package")
def wide(tiny, base):
    return tiny.adapter(base, seed=13, labels_count=5)


@pytest.fixture(scope="package")
def with_one(base, one, tmp_path_factory):
    return build(base, {"one": one}, tmp_path_factory.mktemp("export") / "out").output


@pytest.fixture
def export_dir(with_one, tmp_path):
    """A copy of an export that holds the adapter ``one``."""
    return shutil.copytree(with_one, tmp_path / "out")
