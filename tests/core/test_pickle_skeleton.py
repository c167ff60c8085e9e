from __future__ import annotations

import io
import pickle
import pickletools

import pytest
import torch

from lora_export.core.pickle_skeleton import BoundedReader, Skeleton, count_operations

VALUES = [
    {"a": [1, 2.5, None, (True, "x" * 300)], "b": {b"c" * 300, 1 << 40, -5, 1 << 3000}},
    torch.Size([1, 2]),
    frozenset({"ü"}),
    bytearray(b"abc"),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES)
def test_operations_are_counted_as_pickletools_does(value, protocol) -> None:
    data = pickle.dumps(value, protocol)
    expected = sum(1 for _ in pickletools.genops(data))
    assert count_operations(data, 1, 10**6) == expected
    assert count_operations(data * 3, 2, 10**6) == 2 * expected
    assert count_operations(data, 1, 3) == 3


def test_storages_are_noted_and_nothing_runs() -> None:
    buffer = io.BytesIO()
    torch.save(
        {"a": torch.ones(6), "b": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False
    )
    buffer.seek(0)
    announced: dict[str, int] = {}
    for _ in range(4):
        Skeleton(buffer, announced).load()
    assert sorted(announced.values()) == [2, 6]
    code = pickle.dumps(pytest.fail)
    Skeleton(io.BytesIO(code + b""), {}).load()


def test_no_more_is_asked_for_than_there_is() -> None:
    class Counting(io.BytesIO):
        largest = 0

        def read(self, size=-1, /):
            self.largest = max(self.largest, size)
            return super().read(size)

    stream = Counting(b"abcdef")
    reader = BoundedReader(stream, 4)
    assert (reader.read(2), reader.read(1 << 62), reader.read(1)) == (b"ab", b"cd", b"")
    assert stream.largest == 2
