"""Inputs of a graph of the user's: a cache has to come back, and to grow or to be written."""

from __future__ import annotations

import pytest

from lora_export.graph.spec.signature import WRITE_INDICES, Input, Output, Signature
from lora_export.verification.inputs.feeding import Feeding

KEY, VALUE = (f"past_key_values.0.{what}" for what in ("key", "value"))


def decoder(
    *, past: int | str = "past_sequence", new: int | str = "new", total: int | str = "total",
    returned: tuple[str, ...] = ("present.0.key", "present.0.value"), static: bool = False,
) -> Feeding:  # fmt: skip
    """Return the interface of a decoder with one layer."""
    inputs = [
        Input("input_ids", "int64", ("batch", new)),
        Input("attention_mask", "int64", ("batch", total)),
        *(Input(name, "float32", ("batch", 2, past, 8)) for name in (KEY, VALUE)),
    ]
    if static:
        inputs.append(Input(WRITE_INDICES, "int64", ("batch",)))
    outputs = [Output(name, ("batch", "total")) for name in ("logits", *returned)]
    return Feeding(Signature(tuple(inputs), tuple(outputs)))


def test_cache_that_grows_or_is_written_can_be_filled() -> None:
    assert decoder().cache_reason is None
    assert decoder(past=16, total=16, static=True).cache_reason is None
    text = (Input("input_ids", "int64", ("batch", 8)),)
    assert Feeding(Signature(text, (Output("logits", ()),))).cache_reason is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"returned": ("new.0.key", "present.0.value")}, f"{KEY} and returns no present.0.key"),
        ({"past": 16}, f"the length of {KEY} is always 16"),
        ({"new": 1}, "the length of input_ids is always 1"),
        ({"total": 17}, "the length of attention_mask is always 17"),
    ],
)
def test_cache_that_cannot_be_filled_step_by_step_is_said(wrong, said) -> None:
    feeding = decoder(**wrong)
    assert feeding.reason is None
    assert said in (feeding.cache_reason or "")


def test_room_is_that_of_a_static_cache() -> None:
    assert decoder().room is None
    assert decoder(past=16, total=16, static=True).room == 16


def test_cache_of_another_rank_is_not_fed() -> None:
    flat = Input(KEY, "float32", ("batch", 8, "past"))  # as BLOOM had it
    feeding = Feeding(Signature((*decoder().signature.inputs[:2], flat), ()))
    assert KEY in (feeding.reason or "")
