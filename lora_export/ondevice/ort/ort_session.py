"""A graph in ONNX Runtime: opened, run, closed; its errors are translated here and nowhere else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import (
    ExportDirectoryError,
    LoraExportError,
    MissingRuntimeError,
    UnsupportedError,
    UsageError,
)
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.graph_form import (
    FORM_PROPERTY,
    OLDEST_FOR_ORT_FORM,
    ORT_FORM,
    is_ort_form,
)
from lora_export.ondevice.graph_runner import GraphRunner, Input, closed_error
from lora_export.ondevice.ort.shared_cache import outputs_in_place, run_bound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnxruntime

    from lora_export.ondevice.graph_runner import Array

__all__ = [
    "CPU",
    "EXACT_LEVEL",
    "USUAL_LEVEL",
    "OrtSession",
    "crashing_optimizers",
    "onnxruntime_version",
    "run_error",
]

CPU: Final = "CPUExecutionProvider"
EXACT_LEVEL: Final = 0
"""The accuracy level of products with quantized weights that are not rounded otherwise."""
USUAL_LEVEL: Final = 4
"""The one of a session without settings: what is multiplied is rounded to int8."""

_NOTHING: Final = 4
"""The severity of its log. Its errors are raised, with the same text; the log goes past Python to
the terminal, with the names in a graph as they are."""

_SETTINGS: Final = {"session.force_spinning_stop": "1"}
_EXACT: Final = {"session.qdq_matmulnbits_accuracy_level": str(EXACT_LEVEL)}
_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"

_FUSING: Final = "FuseFp16InitializerToFp32NodeTransformer"
_FUSING_CRASHES: Final = ((1, 23), (1, 30))
"""From the first of these versions up to the second."""

_TOO_NEW: Final = re.compile(r"Unsupported model IR version|Opset \d+ is under development")
"""The message of an ONNX Runtime that is older than a graph."""
_OUTSIDE: Final = re.compile(r"out of data bounds, idx=(-?\d+) .*\[-?\d+,(-?\d+)\]")
"""The message of the kernel of ``Gather``."""
_TOO_LONG: Final = "cos_cache dimension 0 shall not be less than total_sequence_length"
"""The message of the kernel of ``GroupQueryAttention``."""
_DTYPES: Final = {"float": "float32", "double": "float64"}
"""Names of dtypes in ONNX Runtime, where they differ from ours."""


def onnxruntime_version() -> str:
    """Return the version of ONNX Runtime.

    Raises:
        MissingRuntimeError: It is not installed, or cannot be loaded.
    """
    try:
        import onnxruntime
    except Exception as error:  # a broken installation raises what it likes
        msg = f"ONNX Runtime cannot be imported: {error}"
        raise MissingRuntimeError(msg, hint="Install it: pip install onnxruntime") from error
    version: str = onnxruntime.__version__
    return version


def crashing_optimizers(version: str) -> list[str]:
    """Return the graph optimizers that a version of ONNX Runtime has to go without.

    Of 1.23 to 1.29 the one that widens float16 initializers ends the process on those that are
    inputs too, as a swappable graph has them (microsoft/onnxruntime, pull request 32143).
    """
    first, fixed = _FUSING_CRASHES
    return [_FUSING] if first <= _number(version) < fixed else []


def _number(version: str) -> tuple[int, int]:
    """Return the first two parts of a version; zeros where it is none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _require_form(onnx_bytes: bytes, path: Path, version: str) -> None:
    """Require a version that computes what the operators of a graph's form mean.

    Raises:
        MissingRuntimeError: It is older, and would compute something else.
    """
    if is_ort_form(onnx_bytes) and _number(version) < OLDEST_FOR_ORT_FORM:
        oldest = ".".join(map(str, OLDEST_FOR_ORT_FORM))
        msg = (
            f"ONNX Runtime {version} is too old for {str(path)!r}: the graph form {ORT_FORM!r} "
            f"needs {oldest}"
        )
        raise MissingRuntimeError(msg, hint="Install a newer one: pip install -U onnxruntime")


def run_error(error: Exception) -> LoraExportError:
    """Return the error to raise where ONNX Runtime, or a kernel of it, refuses to run inputs."""
    text = _first_line(error)
    if found := _OUTSIDE.search(text):
        msg = f"an input holds or leads to the index {found[1]}, and a table of the model ends at "
        hint = "A token is not in the vocabulary, or a text is longer than the model has positions."
        return UsageError(f"{msg}{found[2]}", hint=hint)
    if _TOO_LONG in text:
        msg = "a text is longer than the model has positions: its table of rotations ends"
        return UsageError(msg, hint="Give a shorter text; portable graphs have no such table.")
    msg = f"the graph failed in ONNX Runtime: {text}"
    return ExportDirectoryError(msg, hint="Report this with the whole output.")


class OrtSession(GraphRunner):
    """One session of one graph; its threads rest between runs, so that sessions do not disturb.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        provider: The execution provider, by its full name.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        initializers: Values that take the place of those in the weight files, of the same shapes
            and dtypes. ONNX Runtime copies or repacks them while it opens the graph (tried up to
            1.32), and does not look at them afterwards.
        prepack: Whether constant weights are packed, which may change the order of sums.
        exact: Whether products with quantized weights are computed in the graph's own dtype. By
            default ONNX Runtime rounds what is multiplied to int8, which is faster.
        graph: A graph in place of the file's, whose weights lie where those of the file do.

    Attributes:
        session: ONNX Runtime's own object, for those who bind its inputs.
        narrow: The inputs that are int32, where users hold int64.
        shares_cache: Whether a cache with room is written in place; see `shared_cache`.

    Raises:
        MissingRuntimeError: ONNX Runtime is not installed or older than the graph, or the provider
            does not start.
        ExportDirectoryError: The graph or its weights are damaged or missing, or it names a file
            outside its folder.
        UnsupportedError: The provider has no kernel for something in the graph.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: str = CPU,
        threads: int = 0,
        initializers: Mapping[str, onnxruntime.OrtValue] | None = None,
        prepack: bool = True,
        exact: bool = False,
        graph: bytes | None = None,
    ) -> None:
        settings = {**_SETTINGS, **(_EXACT if exact else {})}
        settings["session.disable_prepacking"] = "0" if prepack else "1"
        if graph is not None:
            settings[_WEIGHTS_FOLDER] = str(path.parent)
        self.session: Any = _open(
            path, provider, threads, initializers or {}, settings, graph=graph
        )
        self.path = path
        properties = self.session.get_modelmeta().custom_metadata_map
        self.shares_cache = properties.get(FORM_PROPERTY) == ORT_FORM and provider == CPU
        inputs = self.session.get_inputs()
        self.inputs = tuple(each.name for each in inputs)
        self.narrow = frozenset(each.name for each in inputs if each.type == "tensor(int32)")
        self.optional = {e.name: _input(e) for e in self.session.get_overridable_initializers()}
        self.outputs = tuple(each.name for each in self.session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once; inputs that it does not have are left out, int32 ones narrowed.

        A cache with room for the new positions is written in place, and returned; see
        `lora_export.ondevice.ort.shared_cache`.

        Raises:
            ExportDirectoryError: The graph cannot be run on these inputs.
            UsageError: An input is missing, or holds an index that a table of the model does not
                have; or the session was closed.
        """
        if self.session is None:
            raise closed_error(f"the session of {self.path.name!r}")
        wanted = {}
        for name in (*self.inputs, *(each for each in self.optional if each in feeds)):
            if name not in feeds:
                msg = f"the graph {self.path.name!r} also reads {name!r}"
                raise UsageError(msg, hint=f"Its inputs: {', '.join(self.inputs)}.")
            wanted[name] = feeds[name].astype("int32") if name in self.narrow else feeds[name]
        kept = outputs_in_place(wanted) if self.shares_cache else {}
        try:
            if kept:
                return self._run_in_place(wanted, kept)
            values = self.session.run(None, wanted)
        except Exception as error:
            raise run_error(error) from error
        return dict(zip(self.outputs, values, strict=True))

    def _run_in_place(
        self, feeds: Mapping[str, Array], kept: Mapping[str, str]
    ) -> dict[str, Array]:
        """Run the graph once; the outputs of `kept` are the arrays of these inputs."""
        import onnxruntime

        binding = self.session.io_binding()
        held = {n: onnxruntime.OrtValue.ortvalue_from_numpy(each) for n, each in feeds.items()}
        return run_bound(self.session, binding, self.outputs, held=held, feeds=feeds, kept=kept)

    def close(self) -> None:
        """Free the session's memory."""
        self.session = None


def _open(
    path: Path,
    provider: str,
    threads: int,
    initializers: Mapping[str, onnxruntime.OrtValue],
    settings: Mapping[str, str],
    *,
    graph: bytes | None = None,
) -> onnxruntime.InferenceSession:
    version = onnxruntime_version()
    stored = read_graph(path)  # ONNX Runtime would open whatever the graph names
    _require_form(stored if graph is None else graph, path, version)
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _NOTHING
    options.intra_op_num_threads = threads
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    try:
        if initializers:
            options.add_external_initializers(list(initializers), list(initializers.values()))
        session = onnxruntime.InferenceSession(
            str(path) if graph is None else graph,
            sess_options=options,
            providers=[provider],
            disabled_optimizers=crashing_optimizers(version),
        )
    except Exception as error:
        raise _open_error(error, path, provider) from error
    started = session.get_providers()
    if provider not in started:  # ONNX Runtime goes on without it, slowly
        msg = f"{provider} did not start; ONNX Runtime offers {', '.join(started)} instead"
        raise MissingRuntimeError(msg, hint="See which libraries are missing: lora-export doctor")
    return session


def _open_error(error: Exception, path: Path, provider: str) -> LoraExportError:
    text = _first_line(error)
    if any("\udc80" <= each <= "\udcff" for each in str(path)):  # bytes that are not UTF-8
        msg = f"ONNX Runtime cannot open {str(path)!r}: the path is not UTF-8"
        return ExportDirectoryError(msg, hint="Move it to a folder with a name in UTF-8.")
    if _TOO_NEW.search(text):
        msg = f"ONNX Runtime {onnxruntime_version()} is too old for {str(path)!r}: {text}"
        hint = "Install a newer one: pip install -U onnxruntime (--no-deps leaves NumPy as it is)"
        return MissingRuntimeError(msg, hint=hint)
    if "NOT_IMPLEMENTED" in text or "NotImplemented" in type(error).__name__:
        msg = f"{provider} cannot run {path.name!r}: {text}"
        return UnsupportedError(msg, hint="Run it on its target, or choose another dtype.")
    msg = f"ONNX Runtime cannot open {str(path)!r}: {text}"
    return ExportDirectoryError(msg, hint="The file is damaged: copy or export it again.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _input(node: Any) -> Input:
    word = node.type.removeprefix("tensor(").removesuffix(")")
    return Input(node.name, _DTYPES.get(word, word), tuple(node.shape))
