"""Position embeddings that PEFT cannot adapt, because they compute their row numbers.

BART, OPT, Whisper and their kin have an ``nn.Embedding`` called ``embed_positions`` whose forward
takes tokens or a mask, makes positions of them and adds an offset. PEFT's LoRA and trained rows of
an embedding look up what that forward was given instead: what was trained is no change of the
weight, and merging it (as ``merge_and_unload`` does) gives another model. Every such class of
transformers 5 that a plain name can reach is called so; a copy of the whole module
(``modules_to_save``) is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_export.adapters.canonical import Computed, LowRank, Rows

__all__ = ["require_plain_embeddings"]

_NAME: Final = "embed_positions"


def require_plain_embeddings(
    low_rank: Iterable[LowRank], rows: Iterable[Rows | Computed], source: str
) -> None:
    """Require that no low-rank update or replaced row is one of such an embedding.

    Args:
        low_rank: The adapter's low-rank updates.
        rows: The rows that it replaces, and the embeddings that another method computes.
        source: The adapter, for messages.

    Raises:
        UnsupportedError: One is.
    """
    adapted = [each.module for each in low_rank if each.embedding]
    adapted += [each.parameter.rpartition(".")[0] for each in rows]
    for module in adapted:
        if module.rpartition(".")[2] == _NAME:
            msg = (
                f"adapter {source!r} changes {module!r}, an embedding that computes positions "
                "itself: PEFT's update of it is not a change of its weight"
            )
            raise UnsupportedError(
                msg, hint="Train without it, or train the module whole: modules_to_save."
            )
