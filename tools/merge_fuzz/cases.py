"""One case: a base, an adapter, and how they are merged. Drawn from a seed and an index."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from tools.merge_fuzz.adapters import AdapterSpec
from tools.merge_fuzz.bases import BaseSpec, draw_base
from tools.merge_fuzz.chance import chance
from tools.merge_fuzz.combining import Combine, draw_combine
from tools.merge_fuzz.families import families
from tools.merge_fuzz.names import WRAPPERS
from tools.merge_fuzz.settings import draw_settings

if TYPE_CHECKING:
    from tools.merge_fuzz.settings import Inventory

__all__ = ["ATTEMPTS", "BLOCK", "Case", "draw_block", "draw_case"]

BLOCK: Final = 10
"""How many cases share a base."""

ATTEMPTS: Final = 12
"""How often settings are drawn until PEFT takes them."""

MODES: Final = ("merged", "merged", "swappable", "batched")


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        base: The base.
        adapter: The adapter.
        wrapper: What is around its names; see `names.WRAPPERS`.
        as_bin: Whether its file is a pickle.
        flip_fan: Whether its saved config says the opposite of ``fan_in_fan_out``.
        scale: ``--scale``.
        combine: How it is combined with a second adapter of other values; None where it is not.
        mode: The mode of the graph that is built too; None where none is.
    """

    base: BaseSpec
    adapter: AdapterSpec
    wrapper: str | None = None
    as_bin: bool = False
    flip_fan: bool = False
    scale: float = 1.0
    combine: Combine | None = None
    mode: str | None = None

    def text(self) -> str:
        """Return the case as JSON."""
        return json.dumps(asdict(self), default=str)


def draw_block(seed: int, block: int) -> BaseSpec:
    """Draw the base of a block; the families take turns, in an order that the seed shuffles."""
    names = [family.name for family in families()]
    turn, place = divmod(block, len(names))
    Random(f"{seed}:turn:{turn}").shuffle(names)
    return draw_base(Random(f"{seed}:block:{block}"), names[place])


def draw_case(
    name: tuple[int, int, int], base: BaseSpec, inventory: Inventory, *, graphs: float
) -> Case:
    """Draw a case.

    Args:
        name: The seed, the index, and the attempt: PEFT may refuse what is drawn.
        base: The base of the case's block.
        inventory: What of the base can be trained.
        graphs: The share of all cases of which a graph is built too.
    """
    random = Random(":".join(map(str, name)))
    grown = inventory.input_embedding is not None and chance(random, 0.06)
    settings = draw_settings(random, inventory, base.head.task_type)
    start = str(settings.get("init_lora_weights"))
    converted = start.startswith(("pissa", "olora")) and chance(random, 0.6)
    dtype = random.choice(["float32", "float32", "bfloat16", "float16"])
    adapter = AdapterSpec(
        settings=settings,
        dtype="float32" if converted else dtype,
        seed=random.randrange(2**31),
        grown=random.randint(1, 9) if grown else 0,
        save_embeddings=True if grown else random.choice(["auto"] * 6 + [True, False]),
        converted=converted,
    )
    return Case(
        base=base,
        adapter=adapter,
        wrapper=random.choice(list(WRAPPERS)) if chance(random, 0.15) else None,
        as_bin=chance(random, 0.1),
        flip_fan=chance(random, 0.05),
        scale=random.choice([0.5, 2.0, -1.0]) if chance(random, 0.1) and not converted else 1.0,
        combine=draw_combine(random, adapter) if chance(random, 0.08) else None,
        mode=random.choice(MODES) if chance(random, graphs) else None,
    )
