"""The modules that sentence-transformers puts behind a model, read from ``modules.json``.

    transformer → token states → pooling → (dense layers) → (L2 normalization) → sentence embedding

`SentenceHead` is that chain as a value. The formulae are those of sentence-transformers; they are
in `lora_export.graph.trace.traced_pooling`, and once more, for the reference, in
`lora_export.runtime.pooling`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lora_export.core.checkpoint_tables import DENSE, POOLING, read_checkpoint_table
from lora_export.core.errors import CheckpointError, InputError, UnsupportedError
from lora_export.core.files import is_file_name
from lora_export.core.json_file import read_json
from lora_export.weights.checkpoint import read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.json_file import JsonObject
    from lora_export.core.tensors import Tensor
    from lora_export.weights.checkpoint import Checkpoint

from lora_export.weights.sentence_head import DenseLayer, Pooling, SentenceHead

__all__ = [
    "ACTIVATIONS",
    "has_pooling",
    "read_sentence_head",
    "transformer_path",
    "with_sentence_head",
]

_LIMIT_BYTES: Final = 1 << 24
_MODULES: Final = "modules.json"
_PACKAGE: Final = "sentence_transformers."
_DAMAGED: Final = "Save the model again with sentence-transformers."
_OTHERWISE: Final = "For the states of the tokens: --task feature-extraction."

_FLAGS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The flags of a pooling config, in the order in which several results are concatenated."""

_ON_BY_DEFAULT: Final = "pooling_mode_mean_tokens"

ACTIVATIONS: Final = {
    "torch.nn.modules.linear.Identity": "Identity",
    "torch.nn.modules.activation.Tanh": "Tanh",
    "torch.nn.modules.activation.ReLU": "ReLU",
    "torch.nn.modules.activation.GELU": "GELU",
    "torch.nn.modules.activation.SiLU": "SiLU",
    "torch.nn.modules.activation.Sigmoid": "Sigmoid",
}
"""Activations of a dense layer, as its config writes them, and their names in ``torch.nn``."""


@dataclass(frozen=True)
class _Module:
    """A line of ``modules.json``."""

    kind: str
    path: str
    folder: Path

    def config(self, kind: str) -> JsonObject:
        return read_checkpoint_table(
            self.folder / "config.json",
            _LIMIT_BYTES,
            CheckpointError,
            kind=kind,
            absent="The checkpoint was copied without its folders: copy it again.",
            damaged=_DAMAGED,
        )

    def unsupported(self, what: str) -> UnsupportedError:
        msg = f"the sentence-transformers module {self.path or self.kind!r} {what}"
        return UnsupportedError(msg, hint=_OTHERWISE)


def has_pooling(folder: Path) -> bool:
    """Whether ``modules.json`` in `folder` has a pooling of sentence-transformers.

    Raises:
        CheckpointError: The file is damaged.
    """
    return any(module.kind == "Pooling" for module in _modules(folder))


def transformer_path(folder: Path) -> str | None:
    """Return the folder that ``modules.json`` in `folder` names for its transformer.

    Raises:
        CheckpointError: The file is damaged.
    """
    first = next(iter(_modules(folder)), None)
    return first.path if first is not None and first.kind == "Transformer" else None


def with_sentence_head(checkpoint: Checkpoint, pooling: Pooling | None = None) -> Checkpoint:
    """Return `checkpoint` with what follows its model, the tensors of dense layers included.

    Args:
        checkpoint: The base.
        pooling: Where what follows is described; by default beside the base.

    Raises:
        CheckpointError: There is no ``modules.json``, or it or what it names is damaged.
        UnsupportedError: It names a module, or a setting of one, that is not known here.
    """
    place = pooling or Pooling(checkpoint.folder)
    head, tensors = read_sentence_head(place)
    elsewhere = None if place.folder == checkpoint.folder else place
    return replace(
        checkpoint, tensors={**checkpoint.tensors, **tensors}, sentence=head, pooling=elsewhere
    )


def read_sentence_head(pooling: Pooling) -> tuple[SentenceHead, dict[str, Tensor]]:
    """Return the modules that follow a model, and the tensors of its dense layers.

    Raises:
        CheckpointError: There is no ``modules.json``, or it or what it names is damaged.
        UnsupportedError: It names a module, or a setting of one, that is not known here.
    """
    folder = pooling.folder
    modules = _modules(folder)
    if not modules:
        msg = f"{str(folder)!r} has no {_MODULES}: how tokens are pooled is not known"
        hint = "Save it once with sentence-transformers: SentenceTransformer(PATH).save(NEW_PATH)."
        raise CheckpointError(msg, hint=f"{hint} {_OTHERWISE}")
    head = _head(modules, pooling.inner)
    tensors: dict[str, Tensor] = {}
    for layer in head.dense:
        tensors |= _dense_tensors(layer, folder / layer.name)
    return head, tensors


def _modules(folder: Path) -> list[_Module]:
    """Return the lines of ``modules.json``; none where the file is not there."""
    path = folder / _MODULES
    if not path.is_file():
        return []
    rows = read_json(path, _LIMIT_BYTES, CheckpointError, absent=_DAMAGED, damaged=_DAMAGED)
    found = []
    for row in rows if isinstance(rows, list) else [None]:
        kind = row.get("type") if isinstance(row, dict) else None
        place = row.get("path") if isinstance(row, dict) else None
        if not isinstance(kind, str) or not isinstance(place, str):
            msg = f"{str(path)!r} is not a list of modules with a type and a path"
            raise CheckpointError(msg, hint=_DAMAGED)
        if place and not is_file_name(place):
            msg = f"{str(path)!r} names the folder {place!r}, which is not a plain name"
            raise CheckpointError(msg, hint="The file is damaged or hostile.")
        own = kind.startswith(_PACKAGE)
        found.append(_Module(kind.rpartition(".")[2] if own else kind, place, folder / place))
    return found


def _head(modules: list[_Module], inner: str) -> SentenceHead:
    """Return the chain: a transformer, a pooling, then dense layers and a normalization."""
    first, *others = modules
    if first.kind != "Transformer":
        raise first.unsupported(f"is a {first.kind}; only a Transformer can come first")
    if first.path != inner:
        raise first.unsupported("holds the model, which has to be beside modules.json")
    if not others or others[0].kind != "Pooling":
        what = f"is followed by a {others[0].kind}" if others else "is the only one"
        raise first.unsupported(f"{what}; a Pooling has to follow it")
    head = SentenceHead(_modes(others[0]))
    for module in others[1:]:
        if module.kind == "Normalize" and module is modules[-1]:
            head = replace(head, normalize=True)
        elif module.kind == "Dense":
            head = replace(head, dense=(*head.dense, _dense(module)))
        elif module.kind != "Dropout":
            raise module.unsupported(
                f"is a {module.kind}, which is not exported at this place; exported are Pooling, "
                "Dense and, at the end, Normalize"
            )
    return head


def _modes(module: _Module) -> tuple[str, ...]:
    """Return the modes of a pooling, in the order of their results."""
    config = module.config(POOLING)
    if config.get("include_prompt") is False:
        raise module.unsupported("leaves out the tokens of prompts, which the graph cannot tell")
    named = config.get("pooling_mode")
    if named is None:
        wanted = {mode for flag, mode in _FLAGS.items() if config.get(flag, flag == _ON_BY_DEFAULT)}
    else:
        wanted = set(named) if isinstance(named, list) else set(named.split("+"))
    known = tuple(mode for mode in _FLAGS.values() if mode in wanted)
    flags = {key for key in config if key.startswith("pooling_mode_") and config[key]}
    unknown = sorted((wanted - set(known)) | (flags - set(_FLAGS)))
    if unknown or not known:
        what = f"pools by {unknown[0]!r}" if unknown else "has no pooling mode"
        raise module.unsupported(f"{what}; known are {', '.join(_FLAGS.values())}")
    return known


def _dense(module: _Module) -> DenseLayer:
    config = module.config(DENSE)
    activation = config.get("activation_function") or "torch.nn.modules.activation.Tanh"
    if activation not in ACTIVATIONS:
        raise module.unsupported(f"has the activation {activation!r}, which is not known")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in {None, "sentence_embedding"}:
            raise module.unsupported(f"works on {config[key]!r}, not on the sentence embedding")
    widths = config.get("in_features"), config.get("out_features")
    if not all(widths):
        msg = f"{str(module.folder / 'config.json')!r} gives no in_features and out_features"
        raise CheckpointError(msg, hint=_DAMAGED)
    return DenseLayer(
        module.path, int(widths[0] or 0), int(widths[1] or 0), bool(config.get("bias", True)),
        ACTIVATIONS[activation],
    )  # fmt: skip


def _dense_tensors(layer: DenseLayer, folder: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a dense layer under their names in the graph."""
    try:
        held = read_tensors(folder)
    except InputError as error:
        raise CheckpointError(error.message, hint=error.hint) from error
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (layer.outputs, layer.inputs)}
    if layer.bias:
        shapes["linear.bias"] = (layer.outputs,)
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name not in held or held[name].shape != shape:
            has = list(held[name].shape) if name in held else "nothing"
            msg = f"{str(folder)!r} has {has} for {name!r}; its config means {list(shape)}"
            raise CheckpointError(msg, hint=_DAMAGED)
        full = f"{layer.name}.{name}"
        found[full] = replace(held[name], name=full)  # type: ignore[type-var]
    return found
