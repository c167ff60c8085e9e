"""The reader for an adapter's format: one row per format, tried in order on the files' headers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.formats.delta import DELTA, read_delta
from lora_export.adapters.formats.kohya import is_kohya, read_kohya
from lora_export.adapters.formats.llama_cpp import is_gguf, read_gguf_adapter
from lora_export.adapters.formats.loralib import is_loralib, read_loralib
from lora_export.adapters.formats.mlx import is_mlx, read_mlx
from lora_export.adapters.formats.open_archive import (
    Opened,
    Options,
    read_settings,
    require_short_names,
)
from lora_export.adapters.formats.peft import CONFIG_NAME, read_peft
from lora_export.adapters.formats.torchtune import is_torchtune, read_torchtune
from lora_export.core.adapter_settings import check_settings
from lora_export.core.errors import AdapterError, InputError, LoraExportError, UsageError
from lora_export.core.folders import folders_below, list_names
from lora_export.core.gguf_file import read_gguf
from lora_export.core.safetensors_file import read_header
from lora_export.core.torch_file import read_torch_file
from lora_export.ondevice.printable import shell_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.tensors import Tensor

__all__ = ["FORMATS", "is_adapter", "read_adapter"]


@dataclass(frozen=True)
class _Reader:
    """A format: how its files are recognised and read, and which options it has a use for."""

    recognises: Callable[[Opened], bool]
    read: Callable[[Opened, Options], Adapter]
    options: frozenset[str] = frozenset()


_READERS: Final[dict[str, _Reader]] = {
    "gguf": _Reader(is_gguf, read_gguf_adapter),
    "kohya": _Reader(is_kohya, read_kohya),
    "torchtune": _Reader(is_torchtune, read_torchtune, frozenset({"alpha"})),
    "mlx": _Reader(is_mlx, read_mlx),
    "loralib": _Reader(is_loralib, read_loralib, frozenset({"alpha", "enable_lora"})),
}
FORMATS: Final = ("peft", *_READERS)
"""The formats that are detected; ``--adapter-format`` takes these names, and `DELTA`."""

_PEFT_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_NAMES: Final = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapters.safetensors",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.pt",
    "adapter.pt",
)
"""What an adapter's file of tensors is called, in the order in which it is looked for."""

_NUMBERED: Final = "adapter_[0-9]*.pt"
_SUFFIXES: Final = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")


def is_adapter(path: Path) -> bool:
    """Whether some reader recognises what is at `path`, a folder or a file."""
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        return True
    if path.is_file() and _is_peft(path):
        return True
    if path.is_dir() and (path / "config.json").is_file() and _named(path) is None:
        return False  # a checkpoint
    try:
        opened = _open(path, name="adapter", source=str(path))
    except LoraExportError:
        return path.is_dir() and _named(path) is not None
    return any(reader.recognises(opened) for reader in _READERS.values())


def read_adapter(
    path: Path,
    *,
    name: str,
    source: str,
    format: str | None = None,  # noqa: A002  (the word of the flag and the recipe)
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
    base_config: Mapping[str, Any] | None = None,
) -> Adapter:
    """Read the adapter at `path`, a folder or a single file, whatever its format.

    Args:
        path: The folder or file.
        name: The name it goes by in an export.
        source: Where it came from, for messages and the manifest.
        format: One of `FORMATS`, or `DELTA`; None detects it.
        alpha: The alpha that it was trained with, where the format does not record it.
        enable_lora: loralib's setting of that name.
        base_config: The base's ``config.json``, where the base is at hand.

    Raises:
        AdapterError: Nothing there, nothing that a reader recognises, or a damaged file.
        UnsupportedError: A variant that is not handled.
        UsageError: An option is unknown, missing, or of no use to this format.
        MissingRuntimeError: A package that the format needs is not installed.
    """
    if format is not None and format not in {*FORMATS, DELTA}:
        msg = f"unknown adapter format {format!r}"
        raise UsageError(msg, hint=f"Known: {', '.join((*FORMATS, DELTA))}.")
    _require_existing(path, source)
    marks = None if enable_lora is None else tuple(enable_lora)
    options = Options(alpha, marks, base_config)
    if format == DELTA:
        adapter = read_delta(path, name=name, source=source)
        _refuse_useless(options, DELTA, frozenset(), source)
        return adapter
    if format == "peft" or (format is None and _is_peft(path)):
        adapter = read_peft(path if path.is_dir() else path.parent, name=name, source=source)
        _refuse_useless(options, "peft", frozenset(), source)
        return adapter
    opened = _open(path, name=name, source=source)
    if not opened.tensors:
        msg = f"adapter {source!r} has no tensors"
        raise AdapterError(msg, hint="It was saved before training, or damaged.")
    kind = format or _detect(opened)
    reader = _READERS[kind]
    if not reader.recognises(opened):
        msg = f"{source!r} has no tensors of the format {kind!r}: {_examples(opened)}"
        raise AdapterError(msg, hint="Leave --adapter-format out, or give another.")
    _refuse_useless(options, kind, reader.options, source)
    try:
        adapter = reader.read(opened, options)
    except AdapterError:
        raise
    except InputError as error:  # a file that ends in the middle of a tensor
        raise AdapterError(error.message, hint=error.hint) from error
    return replace(adapter, alpha=alpha, enable_lora=marks)


def _require_existing(path: Path, source: str) -> None:
    """Require that there is something at `path`."""
    if path.exists():
        return
    if path.parent.is_dir():
        _refuse_missing_folder(path, source)
    if path.parent.is_file():
        msg = f"adapter {source!r} is a file: it has no folder {path.name!r}"
        raise AdapterError(msg, hint="Leave out --subfolder.")
    msg = f"adapter {source!r} is not a directory or file"
    raise AdapterError(msg, hint="Give the folder of an adapter, or its file of tensors.")


def _is_peft(path: Path) -> bool:
    """Whether `path` is PEFT's: its config is there, and the tensors are of no other format."""
    if path.is_file() and path.name not in _PEFT_WEIGHTS:
        return False
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG_NAME).is_file():
        return False
    if path.is_dir() and _named(folder) is None:
        return True  # its reader says what is missing
    if _names_other_kind(folder / CONFIG_NAME):
        return True  # its reader refuses the kind, whatever the tensors are called
    try:
        opened = _open(path, name="adapter", source=str(path))
    except LoraExportError:  # whoever reads that file says what is wrong
        held = _named(folder)
        return held is None or held.name in _PEFT_WEIGHTS
    return not any(reader.recognises(opened) for reader in _READERS.values())


def _names_other_kind(settings: Path) -> bool:
    """Whether an adapter's settings name a kind of PEFT's that is not LoRA (``ADALORA``)."""
    try:
        kind = read_settings(settings).get("peft_type")
    except AdapterError:
        return False
    return isinstance(kind, str) and kind != "LORA"


def _detect(opened: Opened) -> str:
    kind = next((kind for kind, reader in _READERS.items() if reader.recognises(opened)), None)
    if kind is not None:
        return kind
    msg = f"{opened.source!r} has no known adapter format: {_examples(opened)}"
    if any(".lora_A." in key or ".lora_embedding_A" in key for key in opened.tensors):
        hint = f"These are PEFT's names: copy {CONFIG_NAME}, which PEFT writes beside them."
    else:
        hint = (
            f"Known formats: {', '.join(FORMATS)}. A merged checkpoint has no adapter: "
            f"give it as the base, or as a whole update: --adapter-format {DELTA}."
        )
    raise AdapterError(msg, hint=hint)


def _examples(opened: Opened) -> str:
    """Return the first names in the file, for a message."""
    names = sorted(opened.tensors)
    more = ", …" if len(names) > 2 else ""  # noqa: PLR2004  (two examples)
    return f"its tensors are {', '.join(repr(name[:100]) for name in names[:2])}{more}"


def _refuse_useless(options: Options, kind: str, useful: frozenset[str], source: str) -> None:
    """Refuse an option that the format has no use for, rather than to ignore it."""
    given = {"alpha": options.alpha, "enable_lora": options.enable_lora}
    for option, value in given.items():
        if value is not None and option not in useful:
            flag = f"--{option.replace('_', '-')}"
            msg = f"{flag} is given, but adapter {source!r} is of the format {kind!r}"
            raise UsageError(msg, hint=f"That format records its own settings: leave {flag} out.")


def _named(folder: Path) -> Path | None:
    """Return the file in `folder` that has the name of an adapter's."""
    known = next((folder / each for each in _NAMES if (folder / each).is_file()), None)
    if known is not None:
        return known
    numbered = sorted(folder.glob(_NUMBERED))
    return numbered[0] if len(numbered) == 1 else None


def _open(path: Path, *, name: str, source: str) -> Opened:
    """Open the files of an adapter that is not PEFT's, reading headers and settings only."""
    weights = _weights(path, source) if path.is_dir() else path
    settings = weights.parent / CONFIG_NAME
    present = settings.is_file() and weights.suffix != ".gguf"
    config = read_settings(settings) if present else {}
    check_settings(config, source)
    try:
        tensors, metadata = _read_tensors(weights, source)
    except InputError as error:
        raise AdapterError(error.message, hint=error.hint) from error
    require_short_names(tensors, source)
    return Opened(
        name, source, path, weights, settings if present else None, tensors, config, metadata
    )


def _weights(folder: Path, source: str) -> Path:
    """Return the one file of tensors in `folder`."""
    if (named := _named(folder)) is not None:
        return named
    try:
        found = sorted(each for each in folder.iterdir() if each.suffix in _SUFFIXES)
    except OSError as error:
        msg = f"cannot read the folder of adapter {source!r}: {error.strerror}"
        raise AdapterError(msg, hint="Check its permissions.") from error
    if len(found) == 1:
        return found[0]
    if not found:
        _refuse_parent(folder, source)
        msg = f"{source!r} has no known adapter format: no file of tensors"
        hint = (
            f"Known formats: {', '.join(FORMATS)}. PEFT writes {CONFIG_NAME}. "
            "One in a folder of a repository: --subfolder NAME"
        )
        raise AdapterError(msg, hint=hint)
    names = ", ".join(each.name for each in found[:4])
    msg = f"{source!r} holds several files of tensors: {names}"
    raise AdapterError(msg, hint=f"Pass one of them: {found[0]}")


def _refuse_missing_folder(path: Path, source: str) -> None:
    """Raise for a subfolder that is not there beside others that are."""
    beside = folders_below(path.parent, _is_adapter_folder)
    if beside and path.name not in source:
        msg = f"{source!r} has no folder {path.name!r} with an adapter; it has {list_names(beside)}"
        raise AdapterError(msg, hint=f"Choose one: {shell_command(['--subfolder', beside[-1]])}")


def _is_adapter_folder(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() or _named(folder) is not None


def _refuse_parent(folder: Path, source: str) -> None:
    """Raise for a folder of several adapters, or of a trainer's checkpoints; name them."""
    below = folders_below(folder, _is_adapter_folder)
    if below:
        msg = f"{source!r} has no adapter, but folders below it have one: {list_names(below)}"
        raise AdapterError(
            msg,
            hint=f"Choose one: {shell_command(['--subfolder', below[-1]])}, or give its own path.",
        )


def _read_tensors(path: Path, source: str) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    if path.suffix not in _SUFFIXES:
        msg = f"adapter {source!r} is a file of an unknown kind: {path.name!r}"
        raise AdapterError(msg, hint=f"Known endings: {', '.join(_SUFFIXES)}.")
    if path.suffix == ".safetensors":
        return read_header(path)
    if path.suffix == ".gguf":
        return read_gguf(path)
    return read_torch_file(path), {}
