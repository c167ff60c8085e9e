"""The settings of a build, as values that are stored in bundles and build records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.versions import HARDWARE_LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LARGEST_AXIS", "BuildSettings", "Profile", "ShapeRange", "shape_fits"]

_LEVELS = range(6)
LARGEST_AXIS: Final = 2**31 - 1
"""What an axis has at most in a profile."""

_LARGEST_POOL_BYTES: Final = 2**63 - 1


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input that a profile covers, and the one that kernels are tuned for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = dict[str, ShapeRange]
"""The range of each input that has a dynamic axis."""


def shape_fits(shape: Sequence[int], allowed: ShapeRange) -> bool:
    """Whether a shape lies in a range, axis by axis."""
    return len(shape) == len(allowed.min) and all(
        low <= size <= high for low, size, high in zip(allowed.min, shape, allowed.max, strict=True)
    )


@dataclass(frozen=True)
class BuildSettings:
    """The settings of TensorRT's builder.

    Attributes:
        precision: ``float32``, ``float16`` or ``bfloat16``: the dtype of the graph, which the
            strongly typed network keeps.
        profiles: The optimization profiles.
        workspace_bytes: What layers may take while they are timed and run; None leaves it to
            TensorRT (all of the device's memory).
        optimization_level: 0 to 5: how long kernels are searched for; None is TensorRT's own, 3.
        tf32: Whether float32 products may round their factors to TF32 (10 bits).
        version_compatible: Whether later versions of TensorRT may load the plan.
        hardware_compatibility: A key of `HARDWARE_LEVELS`: which other GPUs may load it.
        strip_weights: Whether the plan leaves the weights out, to be put back from the ONNX file.
        refittable: The weights that may be changed afterwards, and only they.
        compute_capabilities: Of an engine that is built ahead of time: the GPUs that it is for,
            such as ``8.9``; empty for the library's default.
    """

    precision: str
    profiles: tuple[Profile, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    strip_weights: bool = False
    refittable: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no builder takes."""
        if self.hardware_compatibility not in HARDWARE_LEVELS:
            msg = f"unknown hardware compatibility {self.hardware_compatibility!r}"
            raise DeviceError(msg, hint=f"Known: {', '.join(HARDWARE_LEVELS)}.", kind="usage")
        if self.optimization_level is not None and self.optimization_level not in _LEVELS:
            msg = f"the optimization level {self.optimization_level} is not 0 to 5"
            raise DeviceError(msg, kind="usage")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            msg = f"a workspace of {self.workspace_bytes} bytes is too small"
            raise DeviceError(msg, kind="usage")
        if self.workspace_bytes is not None and self.workspace_bytes > _LARGEST_POOL_BYTES:
            msg = f"no device has a workspace of {self.workspace_bytes} bytes"
            raise DeviceError(msg, kind="usage")
        for number, profile in enumerate(self.profiles):
            for name, each in profile.items():
                _require_range(f"profile {number}, input {name!r}", each)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        table = asdict(self)
        table["profiles"] = [
            {
                name: {"min": list(each.min), "opt": list(each.opt), "max": list(each.max)}
                for name, each in profile.items()
            }
            for profile in self.profiles
        ]
        table["refittable"] = list(self.refittable)
        table["compute_capabilities"] = list(self.compute_capabilities)
        return table

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> BuildSettings:
        """Return the settings that `to_json` wrote; `DeviceError` where they are not that."""
        try:
            values = dict(table)
            values["profiles"] = tuple(
                {
                    str(name): ShapeRange(*(_sizes(each[key]) for key in ("min", "opt", "max")))
                    for name, each in profile.items()
                }
                for profile in values.get("profiles", ())
            )
            for key in ("refittable", "compute_capabilities"):
                values[key] = tuple(map(str, values.get(key, ())))
            _require_types(values)
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            msg = f"the build settings are damaged: {type(error).__name__}: {error}"
            raise DeviceError(
                msg, hint="The file is damaged; make it again.", kind="input"
            ) from error


def _require_types(table: Mapping[str, Any]) -> None:
    for key, kinds in _KINDS.items():
        value = table.get(key)
        if key in table and type(value) not in kinds:  # True is not a number here
            msg = f"{key} is {value!r}"
            raise TypeError(msg)


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "precision": (str,),
    "workspace_bytes": (int, type(None)),
    "optimization_level": (int, type(None)),
    "tf32": (bool,),
    "version_compatible": (bool,),
    "hardware_compatibility": (str,),
    "strip_weights": (bool,),
}
"""The types of the settings that are plain values."""


def _sizes(values: Sequence[Any]) -> tuple[int, ...]:
    if any(type(each) is not int for each in values):
        msg = f"the sizes are {values!r}"
        raise TypeError(msg)
    return tuple(values)


def _require_range(where: str, each: ShapeRange) -> None:
    if not len(each.min) == len(each.opt) == len(each.max):
        msg = (
            f"{where}: min, opt and max have {len(each.min)}, {len(each.opt)}, {len(each.max)} axes"
        )
        raise DeviceError(msg, kind="usage")
    for axis, (low, best, high) in enumerate(zip(each.min, each.opt, each.max, strict=True)):
        if not 0 <= low <= best <= high:
            msg = f"{where}: axis {axis} has min {low}, opt {best}, max {high}"
            raise DeviceError(
                msg, hint="They must be in ascending order, and not negative.", kind="usage"
            )
        if high > LARGEST_AXIS:
            msg = f"{where}: axis {axis} has max {high}, above {LARGEST_AXIS}"
            raise DeviceError(msg, kind="usage")
