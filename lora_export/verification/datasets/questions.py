"""The answers of a model to a data set: the same questions for graph and reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from lora_export.graph.spec.signature import PAST
from lora_export.ondevice.judge.decoding import Decoder
from lora_export.verification.inputs.random_inputs import DECODER_IDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


__all__ = ["Answers", "Model", "RecomputingModel"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """The answers of a model to each example.

    Attributes:
        values: A class, a number, tags or a text each; JSON values.
        margins: How clearly, over the root mean square of the logits; None where that has no
            meaning.
    """

    values: Sequence[Any] = field(repr=False)
    margins: npt.NDArray[np.float64] | None = field(default=None, repr=False)


class Model(Protocol):
    """A model as a data set asks it: the task's output for inputs, and a decoder for texts."""

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """Return the task's output for `feeds`."""

    def decoder(self, feeds: Mapping[str, Array]) -> Decoder:
        """Return a decoder; of an encoder-decoder on the encoder's output for `feeds`."""


@dataclass(frozen=True)
class RecomputingModel:
    """A model without a cache: to write a text, it is run again from the beginning for each token.

    Attributes:
        compute: Maps inputs to the logits of all positions.
        inputs: The names of the inputs that it takes.
    """

    compute: Callable[[Mapping[str, Array]], Array]
    inputs: Sequence[str]

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """Return the task's output for `feeds`."""
        return self.compute(feeds)

    def decoder(self, feeds: Mapping[str, Array]) -> Decoder:
        """Return a decoder that remembers the text instead of its keys and values."""
        fixed = dict(feeds) if DECODER_IDS in self.inputs else {}
        return _Rerun(self, fixed)


class _Rerun(Decoder):
    """A decoder that remembers the text, and runs all of it for every position."""

    def __init__(self, model: RecomputingModel, fixed: Mapping[str, Array]) -> None:
        self._model = model
        self._fixed = fixed
        self._seen: dict[str, Array] = {}

    def start(self, batch: int) -> None:
        """Forget what was seen."""
        del batch
        self._seen = {}

    def logits(self, feeds: Mapping[str, Array]) -> Array:
        """Return the logits of the new positions, ``[batch, new, vocabulary]``."""
        for name in ("input_ids", "position_ids"):
            before = [self._seen[name]] if name in self._seen else []
            self._seen[name] = np.concatenate([*before, feeds[name]], axis=1)
        if self._fixed:
            given = {**self._fixed, DECODER_IDS: self._seen["input_ids"]}
        else:
            given = {**self._seen, "attention_mask": feeds["attention_mask"]}
            names = [name for name in self._model.inputs if not name.startswith(PAST)]
            given = {name: given[name] for name in names if name in given}
        return self._model.compute(given)[:, -feeds["input_ids"].shape[1] :]
