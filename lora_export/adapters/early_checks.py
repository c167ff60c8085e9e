"""Checks of an adapter by headers alone, before the graph of its base is traced.

Tracing takes seconds to minutes, and only then are the model's own names known. For the families
whose checkpoints bear these names (`PREFIXES`) the headers tell as much of the layers' matrices.
Whatever they leave open stays open: the graph decides. So nothing is refused here

    1. outside the layers (``….3.…``): a head or an embedding may be tied, or come with the adapter;
    2. that the user drops, or that names a parameter instead of a module;
    3. where the base is quantized, or not of its config: these have errors of their own.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_export.adapters.fit import PREFIXES, header_parameters, prefix_of
from lora_export.adapters.layout import CONV1D_MODULES
from lora_export.adapters.naming import to_checkpoint_names
from lora_export.adapters.resolve import ModelNames, resolve
from lora_export.adapters.vocabulary import vocabulary_of
from lora_export.core.errors import UnsupportedError
from lora_export.core.parameters import Parameter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.adapters.canonical import Adapter, LowRank
    from lora_export.adapters.vocabulary import Vocabulary
    from lora_export.core.tensors import Tensor

__all__ = ["refuse_misfit", "vocabulary_by_headers"]

_LAYER: Final = re.compile(r"(?<=\.)(\d+)(?=\.)")
_WIDTHS: Final = ("hidden_size", "d_model", "n_embd", "dim")
_DEPTHS: Final = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
_MATRIX: Final = 2


def refuse_misfit(
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, object],
    *,
    drop: Sequence[str] = (),
) -> None:
    """Refuse an adapter whose layers are certainly not the base's; read nothing but headers.

    Args:
        adapter: The adapter, its tensors unread.
        tensors: The base's, by the checkpoint's names.
        config: The base's ``config.json``.
        drop: Patterns (``fnmatch``) of tensors that the user leaves out.

    Raises:
        AdapterError: As `resolve` raises it.
    """
    model_type = str(config.get("model_type"))
    prefix = PREFIXES.get(model_type)
    if prefix is None:
        return
    conv1d = CONV1D_MODULES.get(model_type, frozenset())
    parameters = tuple(
        Parameter(name, tensor.shape, tensor.dtype.name, _module_type(name, conv1d))
        for name, tensor in tensors.items()
    )
    names = ModelNames(parameters, prefix)
    try:
        adapter = to_checkpoint_names(adapter, names, config=config, drop=drop)
    except UnsupportedError:
        return  # of the checkpoint's names; the model may have the adapter's
    base = _Base(parameters, names, config)
    certain = tuple(
        update
        for update in adapter.low_rank
        if not any(fnmatch.fnmatchcase(update.parameter, pattern) for pattern in drop)
        and base.tells(update)
    )
    config_of_layers = {**adapter.config, "modules_to_save": None}
    only = replace(
        adapter,
        low_rank=certain,
        saved=(),
        added=(),
        rows=(),
        computed=(),
        complete=False,
        config=config_of_layers,
    )
    resolve(only, parameters, prefix=prefix)


def vocabulary_by_headers(
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, object],
    *,
    drop: Sequence[str] = (),
) -> Vocabulary | None:
    """Return how an adapter changes the number of tokens, as far as headers tell; else None.

    Args:
        adapter: The adapter, its tensors unread.
        tensors: The base's, by the checkpoint's names.
        config: The base's ``config.json``.
        drop: Patterns (``fnmatch``) of tensors that the user leaves out.

    Raises:
        AdapterError: The adapter's tensors mean different numbers of tokens.
    """
    parameters = header_parameters(tensors)
    names = ModelNames(parameters, prefix_of(str(config.get("model_type")), parameters, adapter))
    return vocabulary_of(adapter, parameters, names.find, drop=drop)


def _module_type(name: str, conv1d: frozenset[str]) -> str:
    module = name.rpartition(".")[0].rpartition(".")[2]
    return "Conv1D" if module in conv1d else "Linear"


class _Base:
    """The facts of a base that follow from its headers and its config."""

    def __init__(
        self, parameters: Sequence[Parameter], names: ModelNames, config: Mapping[str, object]
    ) -> None:
        self._names = names
        self._kinds = {_LAYER.sub("*", each.name) for each in parameters}
        self._widths = _numbers(config, _WIDTHS)
        self._depth = max(_numbers(config, _DEPTHS), default=None)

    def tells(self, update: LowRank) -> bool:
        """Whether it is certain what becomes of an update."""
        layers = _LAYER.findall(update.parameter)
        if not layers or update.name is not None or update.embedding:
            return False
        found = self._names.find(update.parameter)
        if found is not None:
            matrix = len(found.shape) == _MATRIX and found.stored_dtype.floating
            return matrix and not self._widths.isdisjoint(found.shape)
        kind = self._names.candidates(_LAYER.sub("*", update.parameter))
        if self._kinds.isdisjoint(kind):
            return True
        return self._depth is not None and int(layers[0]) >= self._depth


def _numbers(config: Mapping[str, object], keys: Sequence[str]) -> set[int]:
    return {value for key in keys if isinstance(value := config.get(key), int)}
