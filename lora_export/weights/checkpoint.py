"""The base checkpoint: its config, and its tensors found lazily in whatever files hold them.

What reads torch's own files, GGUF and quantized weights is imported where a checkpoint has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.checkpoint_tables import INDEX, read_checkpoint_table
from lora_export.core.errors import CheckpointError, InputError, LoraExportError
from lora_export.core.folders import folders_below, list_names
from lora_export.core.manifest import is_export
from lora_export.core.safetensors_file import read_header
from lora_export.ondevice.file_opening import reason_of, require_file
from lora_export.ondevice.printable import shell_command
from lora_export.weights.companion_files import CONFIG, MODULES, VOCABULARIES, companion_files
from lora_export.weights.gguf.gguf_parts import gguf_file_of
from lora_export.weights.quantized.codes import code_names, without_leftover

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.json_file import JsonObject
    from lora_export.core.quantization_record import StoredForm
    from lora_export.core.tensors import FileTensor, MemoryTensor, Tensor
    from lora_export.weights.gguf.gguf_base import GgufBase
    from lora_export.weights.quantized.formats import QuantizedBase
    from lora_export.weights.quantized.weight import QuantizedWeight
    from lora_export.weights.sentence_head import Pooling, SentenceHead

__all__ = ["Checkpoint", "open_checkpoint", "read_config", "read_tensors", "weight_files"]

_CONFIG_LIMIT_BYTES: Final = 1 << 24
_INDEX_LIMIT_BYTES: Final = 1 << 28
_LAYOUTS: Final = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
_LAYERS: Final = 256
_LAYER_KEYS: Final = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip
_OLD_SUFFIXES: Final = {".gamma": ".weight", ".beta": ".bias"}
"""What LayerNorm's parameters were called in checkpoints converted from TensorFlow."""


@dataclass(frozen=True)
class Checkpoint:
    """A base checkpoint on disk, its tensors unread.

    Attributes:
        source: What the user wrote.
        folder: Where its files are.
        config: Its ``config.json``, without a ``quantization_config``: `tensors` are floats.
        tensors: Every tensor by its name, LayerNorm's old names made new; a quantized weight as
            the floats that it stands for.
        companions: The tokenizer and config files beside the weights, and the folders of
            sentence-transformers' modules.
        sentence: What follows the model, where sentence embeddings are exported.
        pooling: Where that is described, if it is not beside the weights.
        quantized: How the weights are stored, where they are quantized.
        trained_on: The quantized checkpoint that adapters were trained on, where the weights are
            those of the original (`lora_export.weights.base_override`).
        file: Its file where it is GGUF, of several parts the first.
    """

    source: str
    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    companions: tuple[Path, ...]
    sentence: SentenceHead | None = None
    pooling: Pooling | None = None
    quantized: QuantizedBase | None = field(default=None, repr=False)
    trained_on: Checkpoint | None = field(default=None, repr=False)
    file: Path | None = None

    @property
    def place(self) -> Path:
        """The folder or the file that it is opened from."""
        return self.file or self.folder

    @property
    def stored(self) -> Mapping[str, Tensor]:
        """The tensors that the fingerprint covers: of a quantized base those in its files."""
        return self.tensors if self.quantized is None else self.quantized.stored

    @property
    def of_adapters(self) -> Checkpoint:
        """The checkpoint that adapters are checked against: the one that they were trained on."""
        return self if self.trained_on is None else self.trained_on

    @property
    def stored_form(self) -> StoredForm | None:
        """The form in which the weights are stored; None where they are floats."""
        return None if self.quantized is None else self.quantized.stored_form


def open_checkpoint(folder: Path, *, source: str | None = None) -> Checkpoint:
    """Open the checkpoint in `folder`, reading headers and config only.

    Args:
        folder: A Hugging Face checkpoint: ``config.json`` beside safetensors (single or sharded),
            or ``pytorch_model.bin`` (single or sharded); or a GGUF file, or its folder.
        source: What the user wrote, for messages and the manifest.

    Raises:
        CheckpointError: A file is missing or damaged, or shards contradict their index.
        UnsupportedError: Its weights are quantized in a form that is not read.
    """
    if (file := gguf_file_of(folder)) is not None:
        return _open_gguf(file, source or str(folder))
    config = read_config(folder)
    companions = companion_files(folder)
    _require_tables(companions)
    try:
        tensors = read_tensors(folder)
    except LoraExportError as error:
        _refuse_unread(config, folder)  # its files may be of a kind that is not read
        if isinstance(error, InputError) and not isinstance(error, CheckpointError):
            raise CheckpointError(error.message, hint=error.hint) from error
        raise
    quantized = _quantized(tensors, config, folder)
    tensors = tensors if quantized is None else quantized.floats
    renamed = {_modern_name(name): _renamed(tensor) for name, tensor in tensors.items()}
    if len(renamed) != len(tensors):
        twice = next(name for name in tensors if _modern_name(name) != name)
        msg = f"the checkpoint {str(folder)!r} holds {twice!r} and {_modern_name(twice)!r}"
        raise CheckpointError(msg, hint="They are the same parameter: save the checkpoint again.")
    if not tensors:
        msg = f"the checkpoint {str(folder)!r} has no tensors"
        raise CheckpointError(msg, hint="It was saved incompletely; copy it again.")
    _require_plausible(config, len(tensors), folder)
    return Checkpoint(
        source=source or str(folder),
        folder=folder,
        config=without_leftover(config),
        tensors=renamed,
        companions=tuple(companions.values()),
        quantized=quantized,
    )


def _refuse_unread(config: Mapping[str, Any], folder: Path) -> None:
    """Raise for a checkpoint whose config says that it is quantized in a form that is not read."""
    from lora_export.weights.quantized.codes import method_of, refuse_quantized
    from lora_export.weights.quantized.formats import METHODS

    if method_of(config) not in METHODS:
        refuse_quantized(config, folder)


def _quantized(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> QuantizedBase | None:
    """Return a quantized checkpoint beside the floats that it stands for; None for any other."""
    if not code_names(tensors):
        return None
    from lora_export.weights.quantized.formats import read_quantized

    return read_quantized(tensors, config, folder)


def _read_gguf(file: Path) -> GgufBase:
    """Open a GGUF file, with the config that lies beside it."""
    from lora_export.weights.gguf.gguf_base import open_gguf

    return open_gguf(file, _config_beside(file))


def _open_gguf(file: Path, source: str) -> Checkpoint:
    """Open a GGUF file with what lies beside it: a config, a tokenizer."""
    companions = companion_files(file.parent)
    _require_tables(companions)
    found = _read_gguf(file)
    return Checkpoint(
        source=source,
        folder=file.parent,
        config=without_leftover(found.config),
        tensors=found.base.floats,
        companions=tuple(companions.values()),
        quantized=found.base,
        file=file,
    )


def _config_beside(file: Path) -> JsonObject | None:
    path = file.parent / CONFIG
    return _read_config_file(path) if path.is_file() else None


def _require_tables(companions: Mapping[str, Path]) -> None:
    """Require that the files of settings beside the weights can be read; vocabularies are not."""
    for name, path in companions.items():
        if (
            path.suffix == ".json"
            and name not in {CONFIG, MODULES, *VOCABULARIES}
            and "/" not in name
        ):
            _read_json(path, _CONFIG_LIMIT_BYTES, name)


def _require_plausible(config: Mapping[str, Any], count: int, folder: Path) -> None:
    """Require that the config has no more layers than a model of `count` tensors may have.

    Models that share their layers' weights (ALBERT) have more layers than tensors, but not many.
    """
    text = config.get("text_config") or {}
    for name in _LAYER_KEYS:
        layers = text.get(name, config.get(name))
        if isinstance(layers, int) and layers > max(count, _LAYERS):
            msg = f"{CONFIG} in {str(folder)!r} says {name}: {layers}, but it has {count} tensors"
            raise CheckpointError(msg, hint="Config and weights are not of the same model.")


def read_config(folder: Path) -> JsonObject:
    """Return the ``config.json`` of `folder`; of a GGUF base what its metadata stand for.

    Raises:
        CheckpointError: It is missing, or is not a table that names a model type.
    """
    if (file := gguf_file_of(folder)) is not None:
        return dict(_read_gguf(file).config)
    if not folder.is_dir():
        msg = f"base {str(folder)!r} is not a directory"
        raise CheckpointError(
            msg,
            hint="Give a folder with config.json and model.safetensors, or an id of the hub: "
            "ORGANISATION/NAME, or hf://NAME.",
        )
    path = folder / "config.json"
    if not path.is_file() and (folder / "adapter_config.json").is_file():
        msg = f"{str(folder)!r} is an adapter, not a base"
        raise CheckpointError(msg, hint="Pass the checkpoint that it was trained on: --base.")
    if not path.is_file() and is_export(folder):
        msg = f"{str(folder)!r} is an export, not a base"
        hint = (
            "Pass the checkpoint that it was made from. To add an adapter: lora-export add EXPORT"
        )
        raise CheckpointError(msg, hint=hint)
    if not path.is_file() and (below := folders_below(folder, _is_checkpoint)):
        msg = (
            f"{str(folder)!r} has no checkpoint, but folders below it have one: {list_names(below)}"
        )
        raise CheckpointError(
            msg, hint=f"Choose one: {shell_command(['--base', folder / below[-1]])}"
        )
    return _read_config_file(path)


def _read_config_file(path: Path) -> JsonObject:
    config = _read_json(path, _CONFIG_LIMIT_BYTES, path.name)
    if not isinstance(config.get("model_type"), str):
        msg = f"{str(path)!r} names no model_type"
        kind = "an adapter's" if "peft_type" in config else "another kind of"
        raise CheckpointError(msg, hint=f"It is {kind} config; pass the base checkpoint.")
    return config


def _is_checkpoint(folder: Path) -> bool:
    names = (name for layout in _LAYOUTS for name in layout)
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in names)


def _read_json(path: Path, limit_bytes: int, kind: str) -> JsonObject:
    return read_checkpoint_table(
        path,
        limit_bytes,
        CheckpointError,
        kind=kind,
        absent="A checkpoint folder holds config.json and its weights; check the path.",
        damaged="The file is damaged: copy it again.",
    )


def read_tensors(folder: Path) -> Mapping[str, Tensor]:
    """Read the headers of the first layout in `folder`: safetensors before pickles.

    Raises:
        CheckpointError: There is none, or shards contradict their index.
        InputError: A file is damaged.
    """
    for index_name, single_name in _LAYOUTS:
        if (folder / index_name).is_file():
            return _read_sharded(folder, index_name)
        if (folder / single_name).is_file():
            return _read_one(folder / single_name)
    wanted = " or ".join(single for _, single in _LAYOUTS)
    msg = f"the checkpoint {str(folder)!r} has no {wanted}"
    raise CheckpointError(msg, hint="Were the weights downloaded? Git LFS leaves pointer files.")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that `read_tensors` reads: the shards' index and the shards, or one file.

    Raises:
        CheckpointError: There is none, or the index is damaged.
    """
    for index_name, single_name in _LAYOUTS:
        if (folder / index_name).is_file():
            weight_map = _read_weight_map(folder, index_name)
            shards = sorted(set(weight_map.values()))
            return (folder / index_name, *(folder / shard for shard in shards))
        if (folder / single_name).is_file():
            return (folder / single_name,)
    return ()


def _read_one(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_header(path)[0]
    from lora_export.core.torch_file import read_torch_file

    return read_torch_file(path)


def _read_weight_map(folder: Path, index_name: str) -> dict[str, str]:
    """Return the file of each tensor, which is beside the index."""
    table = _read_json(folder / index_name, _INDEX_LIMIT_BYTES, INDEX)
    weight_map: dict[str, str] = table["weight_map"]
    return weight_map


def _read_sharded(folder: Path, index_name: str) -> Mapping[str, Tensor]:
    weight_map = _read_weight_map(folder, index_name)
    shards: dict[str, Mapping[str, Tensor]] = {}
    for shard in sorted(set(weight_map.values())):
        try:
            require_file(folder / shard)
        except FileNotFoundError as error:
            msg = f"shard {shard!r} of {str(folder)!r} is missing"
            hint = "The download is incomplete: fetch it again."
            raise CheckpointError(msg, hint=hint) from error
        except OSError as error:
            msg = f"shard {shard!r} of {str(folder)!r} cannot be read: {reason_of(error)}"
            raise CheckpointError(msg, hint="The index is damaged, or the file.") from error
        shards[shard] = _read_one(folder / shard)
    tensors: dict[str, Tensor] = {}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            msg = f"tensor {name!r} is not in the shard {shard!r} that the index names"
            raise CheckpointError(msg, hint="The index and the shards are not of one model.")
        tensors[name] = shards[shard][name]
    return tensors


def _modern_name(name: str) -> str:
    for old, new in _OLD_SUFFIXES.items():
        if name.endswith(old) and "LayerNorm" in name:
            return name.removesuffix(old) + new
    return name


def _renamed(tensor: Tensor) -> Tensor:
    known: FileTensor | MemoryTensor | QuantizedWeight = tensor  # type: ignore[assignment]
    modern = _modern_name(tensor.name)
    return tensor if modern == tensor.name else replace(known, name=modern)
