"""The canonical adapter: what every format becomes, and all that later stages know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.base.tensors import Tensor

__all__ = ["Adapter", "LowRank", "Saved"]


@dataclass(frozen=True)
class LowRank:
    """A low-rank update ``s·B A`` of one module's weight (LoRA, arXiv 2106.09685, section 4.1).

    Attributes:
        module: The module's path in the adapter's model, without wrappers (``…self.query``).
        a: ``[r, in]``; for an embedding ``[r, vocabulary]``.
        b: ``[out, r]``; for an embedding ``[width, r]``.
        scale: s, already resolved: ``alpha / r`` or ``alpha / sqrt(r)``, patterns applied.
        embedding: Whether the module is an embedding, whose weight is ``[vocabulary, width]``.
    """

    module: str
    a: Tensor
    b: Tensor
    scale: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """r, the number of rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Saved:
    """A parameter that the adapter carries whole: a head, a trained bias.

    Attributes:
        parameter: The parameter's path in the adapter's model.
        tensor: Its value.
    """

    parameter: str
    tensor: Tensor


@dataclass(frozen=True)
class Adapter:
    """One adapter, every tensor of its file accounted for.

    Attributes:
        name: The name it goes by in an export.
        source: Where it came from, as the user wrote it.
        folder: Where its files are.
        format: The format it was read from (``peft``).
        low_rank: Its low-rank updates.
        saved: The parameters it carries whole.
        task_type: PEFT's ``task_type``, where the format records it.
        base_name: The base that it names, where the format records it.
        sha256: Hash over the files it was read from.
        config: The format's own settings, for reports.
        repeated: Keys that say nothing of their own: a second copy of a tensor (checked to be
            equal), or the base's own head, kept for running without the adapter.
    """

    name: str
    source: str
    folder: Path
    format: str
    low_rank: tuple[LowRank, ...]
    saved: tuple[Saved, ...]
    task_type: str | None
    base_name: str | None
    sha256: str
    config: Mapping[str, Any] = field(repr=False)
    repeated: tuple[str, ...] = ()

    @property
    def max_rank(self) -> int:
        """The largest rank among its updates; 0 without any."""
        return max((update.rank for update in self.low_rank), default=0)

    @property
    def tensor_count(self) -> int:
        """How many tensors its file holds."""
        return 2 * len(self.low_rank) + len(self.saved) + len(self.repeated)
