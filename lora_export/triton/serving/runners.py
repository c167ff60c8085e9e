"""Runners of an adapter in ONNX Runtime: a session of its own, values of inputs, a row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .index import locate
from .tensors import TensorError, TensorFile, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .index import Index

__all__ = [
    "LOADERS",
    "Runner",
    "Settings",
    "crashing_optimizers",
    "load_runner",
    "merged_values",
    "open_session",
]

Array = np.ndarray[Any, Any]
_QUIET = 3
_A, _B, _SCALE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude.scale"


@dataclass(frozen=True)
class Settings:
    """The device and options of sessions.

    Attributes:
        provider: ONNX Runtime's name of the execution provider.
        device_id: The GPU, where it is one.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
    """

    provider: str = "CPUExecutionProvider"
    device_id: int = 0
    threads: int = 0

    @property
    def device(self) -> str:
        """The device of inputs that are kept."""
        return "cpu" if self.provider == "CPUExecutionProvider" else "cuda"


def crashing_optimizers(version: str) -> list[str]:
    """Return the optimizers to disable; the same as in lora_export.ondevice.ort.ort_session."""
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    return ["FuseFp16InitializerToFp32NodeTransformer"] if (1, 23) <= number < (1, 30) else []


def open_session(path: Path, settings: Settings, values: Mapping[str, Array] | None = None) -> Any:
    """Open a graph.

    Args:
        path: The ``.onnx`` file, its weights below its folder.
        settings: The provider and its threads.
        values: Initializers that take the place of those in the weight file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    held = [_value(each, "cpu", 0) for each in (values or {}).values()]
    if held:
        options.add_external_initializers(list(values or ()), held)
    extra = {"device_id": str(settings.device_id)} if settings.device == "cuda" else {}
    session = onnxruntime.InferenceSession(
        str(path),
        sess_options=options,
        providers=[(settings.provider, extra)],
        disabled_optimizers=crashing_optimizers(onnxruntime.__version__),
    )
    if settings.provider not in session.get_providers():
        msg = f"{settings.provider} did not start; there is {', '.join(session.get_providers())}"
        raise RuntimeError(msg)
    return session


class Runner:
    """A session, and what is given to it at every run.

    Args:
        session: The session.
        values: Values of its optional inputs, by name.
        settings: Where they are kept.
    """

    def __init__(self, session: Any, values: Mapping[str, Array], settings: Settings) -> None:
        self._session = session
        self._arrays = dict(values)  # a value on the CPU points at its array
        self._values = {
            name: _value(each, settings.device, settings.device_id)
            for name, each in self._arrays.items()
        }

    def run(self, outputs: tuple[str, ...], feeds: Mapping[str, Array]) -> list[Array]:
        """Run it once; return the outputs in the order of `outputs`."""
        given = {name: _value(np.ascontiguousarray(each), "cpu", 0) for name, each in feeds.items()}
        found = self._session.run_with_ort_values(list(outputs), {**self._values, **given})
        return [np.asarray(each.numpy()) for each in found]


def load_runner(
    folder: Path, index: Index, name: str, *, shared: Any, settings: Settings
) -> Runner:
    """Load one adapter.

    Args:
        folder: That of the index.
        index: What is served.
        name: The adapter.
        shared: The session of the graph that adapters share; None where they have their own.
        settings: Where it runs.

    Raises:
        TensorError: Its pack is damaged, or of another base.
        OSError: A file is missing.
    """
    return LOADERS[index.way](folder, index, name, shared, settings)


def _own_session(folder: Path, index: Index, name: str, _: Any, settings: Settings) -> Runner:
    path = locate(folder, index.adapters[name].file)
    if not path.is_file():
        raise FileNotFoundError(path.name)
    return Runner(open_session(path, settings), {}, settings)


def _bound_pack(folder: Path, index: Index, name: str, shared: Any, settings: Settings) -> Runner:
    return Runner(shared, _read_pack(folder, index, name), settings)


def _merged_pack(folder: Path, index: Index, name: str, _: Any, settings: Settings) -> Runner:
    values = merged_values(folder, index, _read_pack(folder, index, name))
    return Runner(open_session(locate(folder, index.graph), settings, values), {}, settings)


LOADERS = {
    "merged": _own_session,
    "swappable": _bound_pack,
    "merge_at_load": _merged_pack,
}
"""By the way in which adapters are run; rows of a batched graph are loaded with it."""


def _read_pack(folder: Path, index: Index, name: str) -> dict[str, Array]:
    pack, metadata = read_tensors(locate(folder, index.adapters[name].file))
    if metadata.get("base_fingerprint") != index.fingerprint:
        msg = f"the pack of {name!r} is for another base"
        raise TensorError(msg)
    return pack


def merged_values(folder: Path, index: Index, pack: Mapping[str, Array]) -> dict[str, Array]:
    """Return the weights that an adapter changes: ``(W + A B) ∘ g``, in the graph's layout.

    Args:
        folder: That of the index.
        index: Says which weight each ``A [in, r]`` belongs to, and how it is stored.
        pack: The adapter: A, ``B [r, out]`` with its scale, DoRA's ``g [out]``, whole parameters.

    Raises:
        TensorError: The pack holds half an update.
    """
    values: dict[str, Array] = {}
    used = set()
    with TensorFile(locate(folder, index.weights)) as weights:
        for name in pack:
            if not name.endswith(_A):
                continue
            module = name[: -len(_A)]
            if name not in index.matrices or module + _B not in pack:
                msg = f"there is no weight for {name!r}, or half of its update is missing"
                raise TensorError(msg)
            matrix = index.matrices[name]
            stored = weights.read(matrix.initializer)
            a, b = (
                pack[module + each].astype(np.float32) for each in (_A, _B)
            )  # (in, r), (r, out)
            merged = (stored.T if matrix.out_axis == 0 else stored).astype(np.float32) + a @ b
            if module + _SCALE in pack:
                merged *= pack[module + _SCALE].astype(np.float32)
            merged = merged.T if matrix.out_axis == 0 else merged
            values[matrix.initializer] = np.ascontiguousarray(merged.astype(stored.dtype))
            used |= {name, module + _B, module + _SCALE}
    return values | {name: each for name, each in pack.items() if name not in used}


def _value(values: Array, device: str, device_id: int) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(values, device, device_id)
