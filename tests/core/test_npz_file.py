"""Bytes of ``.npz`` files: what was given, and nothing else, under every version of NumPy."""

from __future__ import annotations

import io

import numpy as np
import pytest

from lora_export.core.npz_file import npz_bytes


def test_the_arrays_and_nothing_else_are_in_the_file() -> None:
    given = {"0.input.ids": np.arange(6).reshape(2, 3), "count": np.array(1)}
    with np.load(io.BytesIO(npz_bytes(given)), allow_pickle=False) as file:
        found = dict(file)
    assert set(found) == set(given)  # NumPy 2.0 stores a keyword that it does not know
    np.testing.assert_array_equal(found["0.input.ids"], given["0.input.ids"])


def test_objects_are_not_pickled() -> None:
    with pytest.raises(TypeError, match="'text' holds Python objects"):
        npz_bytes({"text": np.array([{}], dtype=object)})
