"""Every method that is merged, against PEFT's own merge and unmerged forward."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import peft
import pytest
import torch

from lora_export.adapters.methods.table import METHODS
from lora_export.weights import rows
from tests.helpers.method_cases import CASES, PEFT_CASES, adapted, merged_by_us

if TYPE_CHECKING:
    from pathlib import Path

ALL = {**CASES, **PEFT_CASES}
QUICK = frozenset({*CASES, "hira", "road", "vblora", "waveft"})
TRANSPOSED = frozenset({"loha", "lokr", "ia3", "vera", "fourierft", "hra-orthogonal"})
RUNS = [
    pytest.param(
        case, turned, id=f"{case}{'-transposed' * turned}",
        marks=() if case in (TRANSPOSED if turned else QUICK) else pytest.mark.slow,
    )
    for turned in (False, True)
    for case in ALL
]  # fmt: skip


@pytest.mark.parametrize(("case", "transposed"), RUNS)
def test_merged_weights_and_forward_are_those_of_peft(
    case: str, transposed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 64)  # several blocks per tensor
    base, model = adapted(tmp_path / "a", *ALL[case])
    ids = torch.randint(0, 11, (5, 4))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors, in PEFT's layer
        unmerged = model(ids)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    ours = merged_by_us(base, tmp_path / "a", transposed=transposed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert any(not torch.allclose(value, before[name], rtol=0.01) for name, value in theirs.items())
    for name, value in theirs.items():
        error = torch.linalg.norm(ours[name].double() - value.double())
        assert error <= 3e-6 * torch.linalg.norm(value.double()), name
    base.load_state_dict(ours)
    with torch.no_grad():
        torch.testing.assert_close(base(ids), unmerged, rtol=1e-4, atol=1e-5)


def test_every_method_of_the_table_is_compared() -> None:
    kinds = {getattr(peft, kind)().peft_type.value for kind, _ in ALL.values()
             if kind != "AdaLoraConfig"} | {"ADALORA"}  # fmt: skip
    assert kinds == set(METHODS)
