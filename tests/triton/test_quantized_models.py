"""Model repositories of quantized exports: Python models in each way, graphs, merges at load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.core.errors import UnsupportedError
from lora_export.runtime import open_export
from lora_export.triton.check_repository import check_repository
from lora_export.triton.repository import write_repository
from tests.helpers.backend import Backend, Request, loaded
from tests.helpers.builds import build
from tests.helpers.slow import but_the_first
from tests.helpers.triton import CLOSE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TASK = "text-classification"
IDS = np.random.default_rng(3).integers(3, 200, (1, 7))
FEEDS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
CONFIG: dict[str, Any] = {
    "parameters": {"cache_bytes": {"string_value": str(1 << 30)}, "threads": {"string_value": "1"}}
}


@pytest.mark.parametrize("mode", but_the_first(["swappable", "batched", "merged"]))
def test_a_python_model_answers_as_a_session_does(
    tiny: TinyModels, tmp_path: Path, mode: str
) -> None:
    base = tiny.base("roberta", TASK)
    adapters = {
        "one": tiny.adapter(base, seed=5),
        "dora": tiny.adapter(base, seed=6, use_dora=True),
    }
    export = build(base, adapters, tmp_path / "out", mode=mode, quantize="int4").output
    write_repository(export, tmp_path / "models", name="m", backend="python")
    assert not any(check_repository(tmp_path / "models").values())
    model = loaded(tmp_path / "models" / "m" / "1", CONFIG, Backend())
    with open_export(export) as session:
        for name in (None, "one", "dora"):
            (answer,) = model.execute([Request(FEEDS, [name or ""])])
            expected = session.run(FEEDS, adapter=name)["logits"]
            np.testing.assert_allclose(answer["logits"], expected, **CLOSE)


def test_a_merge_at_load_is_refused_when_the_repository_is_written(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", TASK)
    adapters = {"one": tiny.adapter(base, seed=5)}
    export = build(base, adapters, tmp_path / "out", mode="swappable", quantize="int8").output
    with pytest.raises(UnsupportedError, match="holds quantized") as caught:
        write_repository(
            export, tmp_path / "models", name="m", backend="python", way="merge_at_load"
        )
    assert "--way swappable" in str(caught.value.hint)
    assert not (tmp_path / "models" / "m").exists()
