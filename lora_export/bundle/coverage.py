"""Checks that the engines of a bundle cover the shapes that are run on the device.

An engine takes the shapes of its profiles and no others. What the golden outputs and the latency
need is known when the bundle is packed, so that nobody finds out on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.core.errors import UsageError
from lora_export.ondevice.judge.decoding import DECODER_IDS, PAST, WRITE_INDICES, spans
from lora_export.ondevice.trt.build_settings import BuildSettings, shape_fits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

    from lora_export.ondevice.bundle.index_values import EngineSource
    from lora_export.ondevice.trt.build_settings import Profile, ShapeRange

    Feeds = Mapping[str, npt.NDArray[Any]]
    Shapes = dict[str, tuple[int, ...]]

__all__ = ["require_cover", "require_cover_of_decoder"]


def require_cover(
    what: str,
    engine: EngineSource,
    feeds: Feeds,
    *,
    step: bool,
    further: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Require that some profile of an engine covers each run that an input takes.

    Args:
        what: What the input is for, for the error.
        engine: The engine.
        feeds: The input; of a decoder with a cache it is run in pieces.
        step: Whether those are a prefill of all of it and a step behind it, as latency has them.
        further: The shapes of what every run is fed beside it: an adapter's values.

    Raises:
        UsageError: No profile covers a run.
    """
    _require(what, engine, ({**shapes, **(further or {})} for shapes in _runs(feeds, step=step)))


def require_cover_of_decoder(what: str, engine: EngineSource, feeds: Feeds) -> None:
    """Require the same of the decoder of a pair, which reads what the encoder makes of `feeds`.

    Raises:
        UsageError: No profile covers a run.
    """
    profiles = BuildSettings.from_json(engine.settings).profiles
    if profiles:
        _require(what, engine, _runs_of_decoder(feeds, profiles[0]))


def _require(what: str, engine: EngineSource, runs: Iterable[Shapes]) -> None:
    profiles = BuildSettings.from_json(engine.settings).profiles
    if not profiles:
        return
    for shapes in runs:
        if any(_covers(profile, shapes) for profile in profiles):
            continue
        name = _first_outside(profiles, shapes)
        known = " or ".join(
            f"{list(each[name].min)} to {list(each[name].max)}" for each in profiles if name in each
        )
        past = next((shape[2] for key, shape in shapes.items() if key.startswith(PAST)), None)
        behind = f" after {past} others" if past and not name.startswith(PAST) else ""
        msg = f"no profile covers the inputs that check {what}: {name} {list(shapes[name])}{behind}"
        raise UsageError(msg, hint=f"Profiles cover {known}: widen one with --profile (profiles).")


def _covers(profile: Profile, shapes: Shapes) -> bool:
    return all(
        shape_fits(shape, profile[name]) for name, shape in shapes.items() if name in profile
    )


def _first_outside(profiles: Iterable[Profile], shapes: Shapes) -> str:
    """Return the first input that lies in no profile; the first of all where only together none."""
    for name, shape in shapes.items():
        ranges = [each[name] for each in profiles if name in each]
        if ranges and not any(shape_fits(shape, each) for each in ranges):
            return name
    return next(iter(shapes))


def _runs(feeds: Feeds, *, step: bool) -> Iterator[Shapes]:
    """Yield the shapes of each run; those of a static cache's buffers are fixed, and left out."""
    past = {name: each.shape for name, each in feeds.items() if name.startswith(PAST)}
    static = WRITE_INDICES in feeds
    if not past and not static:
        yield {name: each.shape for name, each in feeds.items()}
        return
    batch, length = feeds["input_ids"].shape
    for start, end in [(0, length), (length, length + 1)] if step else spans(length):
        shapes: Shapes = {
            name: (batch, end if name == "attention_mask" else end - start)
            for name in feeds
            if name not in past
        }
        if static:
            yield shapes | {name: feeds[name].shape for name in ("attention_mask", WRITE_INDICES)}
            continue
        yield shapes | {
            name: (batch, heads, start, width) for name, (_, heads, _, width) in past.items()
        }


def _runs_of_decoder(feeds: Feeds, profile: Profile) -> Iterator[Shapes]:
    """Yield the shapes of each run of a pair's decoder; sizes that are fixed are the profile's."""
    batch, length = feeds[DECODER_IDS].shape
    text = feeds["input_ids"].shape[1] if "input_ids" in feeds else None
    for start, end in spans(length):
        yield {
            name: _shape_of(name, each, batch=batch, text=text, past=start, new=end - start)
            for name, each in profile.items()
        }


def _shape_of(
    name: str, each: ShapeRange, *, batch: int, text: int | None, past: int, new: int
) -> tuple[int, ...]:
    """Return the shape of an input of a pair's decoder: ids, a mask, or keys and values."""
    if not name.startswith(PAST):
        return (batch, new) if name == "input_ids" else (batch, text or each.max[1])
    length = past if ".decoder." in name else text or each.max[2]
    return (batch, each.max[1], length, each.max[3])
