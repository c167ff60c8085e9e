"""Whether the engines of a bundle take what they are checked and measured with on the device.

An engine takes the shapes of its profiles and no others. What the golden outputs and the latency
need is known when the bundle is packed, so that nobody finds out on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.base.errors import UsageError
from lora_export.device.decoding import PAST, spans
from lora_export.device.settings import BuildSettings, shape_fits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from lora_export.device.contents import EngineSource
    from lora_export.device.settings import Profile

    Feeds = Mapping[str, npt.NDArray[Any]]
    Shapes = dict[str, tuple[int, ...]]

__all__ = ["require_cover"]


def require_cover(what: str, engine: EngineSource, feeds: Feeds, *, step: bool) -> None:
    """Require that some profile of an engine covers each run that an input takes.

    Args:
        what: What the input is for, for the error.
        engine: The engine.
        feeds: The input; of a decoder with a cache it is run in pieces.
        step: Whether those are a prefill of all of it and a step behind it, as latency has them.

    Raises:
        UsageError: No profile covers a run.
    """
    profiles = BuildSettings.from_json(engine.settings).profiles
    if not profiles:
        return
    for shapes in _runs(feeds, step=step):
        if any(_covers(profile, shapes) for profile in profiles):
            continue
        name = next(iter(shapes))
        known = " or ".join(
            f"{list(each[name].min)} to {list(each[name].max)}" for each in profiles if name in each
        )
        past = next((shape[2] for key, shape in shapes.items() if key.startswith(PAST)), None)
        behind = f" behind {past} others" if past else ""
        msg = f"no profile covers what {what} is checked with: {name} {list(shapes[name])}{behind}"
        raise UsageError(msg, hint=f"The profiles have {known}: widen one (profiles, --profile).")


def _covers(profile: Profile, shapes: Shapes) -> bool:
    return all(
        shape_fits(shape, profile[name]) for name, shape in shapes.items() if name in profile
    )


def _runs(feeds: Feeds, *, step: bool) -> Iterator[Shapes]:
    """Yield the shapes of each run."""
    past = {name: each.shape for name, each in feeds.items() if name.startswith(PAST)}
    if not past:
        yield {name: each.shape for name, each in feeds.items()}
        return
    batch, length = feeds["input_ids"].shape
    for start, end in [(0, length), (length, length + 1)] if step else spans(length):
        shapes = {
            name: (batch, end if name == "attention_mask" else end - start)
            for name in feeds
            if name not in past
        }
        yield shapes | {
            name: (batch, heads, start, width) for name, (_, heads, _, width) in past.items()
        }
