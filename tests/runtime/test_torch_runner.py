"""A module of torch, run on arrays and timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_export.core.errors import UnsupportedError, UsageError

torch = pytest.importorskip("torch")

from lora_export.runtime.torch_runner import TorchRunner  # noqa: E402  (after torch is known)


class Doubling(torch.nn.Module):
    """Returns its input twice over, half as precise; remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[set[str]] = []

    def forward(self, **feeds: Any) -> dict[str, Any]:
        self.calls.append(set(feeds))
        if "bad" in feeds:
            msg = "no such input"
            raise TypeError(msg)
        return {"logits": feeds["x"].to(torch.bfloat16) * 2, "unread": feeds["x"]}


def test_outputs_are_the_wanted_ones_in_float32():
    with TorchRunner(Doubling(), ("x",), ("logits",)) as runner:
        found = runner.run({"x": np.arange(3.0)[::-1], "past_key_values.0.key": np.zeros(1)})
        assert runner.module.calls == [{"x", "return_dict"}]
    assert list(found) == ["logits"]
    assert found["logits"].dtype == np.float32
    assert found["logits"].tolist() == [4, 2, 0]
    with pytest.raises(UsageError, match="was closed"):
        runner.run({"x": np.ones(1)})


def test_a_bound_run_computes_without_copies():
    runner = TorchRunner(Doubling(), ("x",), ("logits",))
    run: Any = runner.bound({"x": np.ones(2)})
    assert run()["logits"].dtype == torch.bfloat16
    assert len(runner.module.calls) == 2  # one to see whether torch can


def test_what_torch_cannot_run_is_refused():
    runner = TorchRunner(Doubling(), ("x",), ("logits",))
    with pytest.raises(UnsupportedError, match="torch cannot run the model: no such input"):
        runner.bound({"bad": np.ones(2)})
