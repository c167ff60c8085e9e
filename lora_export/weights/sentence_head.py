"""The head of a sentence embedding model: pooling, dense layers, normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["DenseLayer", "Pooling", "SentenceHead"]


@dataclass(frozen=True)
class DenseLayer:
    """``activation(x Wᵀ + b)``, a module of its own.

    Attributes:
        name: Its folder (``2_Dense``); its parameters are ``2_Dense.linear.weight`` and ``.bias``.
        inputs: Width of what it reads.
        outputs: Width of what it returns.
        bias: Whether it has one.
        activation: A value of `ACTIVATIONS`.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool
    activation: str

    def __str__(self) -> str:
        """Describe the layer."""
        return f"dense {self.inputs}→{self.outputs} {self.activation}"


@dataclass(frozen=True)
class SentenceHead:
    """The modules that follow the token states.

    Attributes:
        modes: How states are pooled, by sentence-transformers' names; several are concatenated.
        dense: Dense layers, in order.
        normalize: Whether the result is scaled to length 1.
    """

    modes: tuple[str, ...]
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = False

    def __str__(self) -> str:
        """Describe the chain, as the manifest records it: ``mean, normalize``."""
        steps = ["+".join(self.modes), *map(str, self.dense), *(["normalize"] * self.normalize)]
        return ", ".join(steps)


@dataclass(frozen=True)
class Pooling:
    """The place of a pooling: the folder that holds ``modules.json``.

    Attributes:
        folder: Its folder.
        inner: The folder in it that holds the model or the adapter; empty where that is `folder`.
    """

    folder: Path
    inner: str = ""
