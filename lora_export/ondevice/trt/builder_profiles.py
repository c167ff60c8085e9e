"""Optimization profiles given to the builder: every dynamic input has a range in each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.ondevice.device_errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tensorrt as trt

    from lora_export.ondevice.trt.build_settings import Profile

__all__ = ["add_profiles"]


def add_profiles(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    profiles: Sequence[Profile],
    onnx: str,
) -> None:
    """Add profiles to `config`.

    Args:
        builder: The builder.
        network: The parsed graph.
        config: The configuration of the build.
        profiles: The ranges of the inputs.
        onnx: The ONNX file, for messages.

    Raises:
        DeviceError: A profile lacks an input, names another, or does not fit its shape; or
            TensorRT refuses it.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            msg = f"the values of input {tensor.name!r} are used as a shape"
            raise DeviceError(msg, hint="Profiles of values are not handled.", kind="unsupported")
        shapes[tensor.name] = tuple(tensor.shape)
    dynamic = {name for name, shape in shapes.items() if -1 in shape}
    if dynamic and not profiles:
        msg = f"input {min(dynamic)!r} of {onnx!r} has dynamic axes, and there is no profile"
        raise DeviceError(msg, hint="Add one with --profile.", kind="usage")
    for number, ranges in enumerate(profiles):
        _require_cover(number, ranges, shapes, dynamic)
        profile = builder.create_optimization_profile()
        for name in sorted(dynamic):
            each = ranges[name]
            profile.set_shape(name, each.min, each.opt, each.max)
        if config.add_optimization_profile(profile) < 0:
            msg = f"TensorRT refuses profile {number} of {onnx!r}"
            raise DeviceError(msg, kind="usage")


def _require_cover(
    number: int, ranges: Profile, shapes: Mapping[str, tuple[int, ...]], dynamic: set[str]
) -> None:
    """Require of a profile every dynamic input, no unknown one, and fixed axes as they are."""
    if lacking := sorted(dynamic - set(ranges)):
        msg = f"profile {number} has no range for input {lacking[0]!r}"
        raise DeviceError(msg, hint=f"Dynamic inputs: {', '.join(sorted(dynamic))}.", kind="usage")
    for name, each in ranges.items():
        shape = shapes.get(name)
        if shape is None:
            msg = f"profile {number} names {name!r}, which is not an input of the graph"
            raise DeviceError(msg, hint=f"Its inputs: {', '.join(sorted(shapes))}.", kind="usage")
        fixed = all(
            size in (-1, low) and size in (-1, high)
            for size, low, high in zip(shape, each.min, each.max, strict=False)
        )
        if len(shape) != len(each.min) or not fixed:
            msg = f"profile {number} gives {name!r} {each.min} to {each.max}, the graph has {shape}"
            raise DeviceError(msg, hint="-1 is an axis of any size.", kind="usage")
