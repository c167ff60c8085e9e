"""A graph with what it is fed in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.device.checks import Bound

if TYPE_CHECKING:
    from collections.abc import Mapping


class Seen:
    """A graph that returns what it is fed."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return dict(feeds)


@pytest.mark.parametrize(
    "feeds",
    [
        {"input_ids": np.zeros((3, 5), np.int64), "attention_mask": np.ones((3, 5), np.int64)},
        {"pixel_values": np.zeros((3, 1, 4, 4), np.float32)},
    ],
)
def test_every_row_of_texts_and_of_images_has_its_adapter(feeds):
    found = Bound(Seen(), {"lora_scale": np.float32(2)}, row=7).run(feeds)
    assert found["adapter_ids"].tolist() == [7, 7, 7]
    assert found["adapter_ids"].dtype == np.int64
    assert found["lora_scale"] == 2
