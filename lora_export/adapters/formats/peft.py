"""PEFT adapters: ``adapter_config.json`` beside ``adapter_model.safetensors`` or ``.bin``.

Here the files are found and what no merge can do is refused; `peft_tensors` sorts the tensors,
`peft_scale` resolves the scale.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.attention_modules import attention_of
from lora_export.adapters.canonical import Adapter
from lora_export.adapters.formats.open_archive import read_settings, require_short_names
from lora_export.adapters.formats.peft_methods import sort_method
from lora_export.adapters.formats.peft_tensors import sort_tensors
from lora_export.adapters.known_base import read_known_base
from lora_export.adapters.methods.table import METHODS, NOT_MERGED
from lora_export.adapters.position_embeddings import require_plain_embeddings
from lora_export.adapters.saved_modules import require_separate
from lora_export.adapters.targeting import require_targeted
from lora_export.core.adapter_settings import check_settings
from lora_export.core.errors import AdapterError, InputError, UnsupportedError
from lora_export.core.files import sha256_of_files
from lora_export.core.safetensors_file import read_header
from lora_export.core.shown_value import shown
from lora_export.core.torch_file import read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.adapters.formats.peft_tensors import Sorted
    from lora_export.core.tensors import Tensor

__all__ = ["CONFIG_NAME", "read_peft", "read_tensors"]

CONFIG_NAME: Final = "adapter_config.json"
_WEIGHT_NAMES: Final = ("adapter_model.safetensors", "adapter_model.bin")
_RESIDUAL: Final = re.compile(r"pissa|pissa_niter_\d{1,4}|olora", re.IGNORECASE)
"""Initialisations whose residual base is recognised; see ``weights/residual.py``."""

_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that move part of the base into the adapter."""

_REFUSED_SETTINGS: Final[dict[str, str]] = {
    "alora_invocation_tokens": "an activated LoRA depends on the input: it has no plain merge",
    "layer_replication": "replicated layers change the model's structure: no plain merge exists",
    "megatron_config": "Megatron's parallel layers are not read",
    "use_qalora": "QA-LoRA pools its inputs: it has no plain merge",
    "velora_config": "VeLoRA is not read",
    "kasa_config": "KaSA is not read",
    "monteclora_config": "MonteCLoRA is not read",
    "arrow_config": "Arrow routes between adapters per token: no plain merge exists",
    "use_bdlora": "block-diagonal LoRA is not read",
}
"""Settings that change what the tensors mean; a merge that ignored them would be wrong."""


def read_peft(folder: Path, *, name: str, source: str) -> Adapter:
    """Read the PEFT adapter in `folder`; the tensors themselves stay on disk.

    Args:
        folder: The adapter's directory.
        name: The name it goes by in the export.
        source: Where it came from, for messages and the manifest.

    Raises:
        AdapterError: A file is missing or damaged, a factor lacks its partner, ranks disagree, or
            tensors belong to modules that the config does not target.
        UnsupportedError: The adapter is of another kind than LoRA, uses a refused setting, or saves
            a module inside a saved one.
    """
    config = read_settings(folder / CONFIG_NAME)
    _refuse_unsupported(config, source)
    check_settings(config, source)
    path, tensors, metadata = _read_weights(folder, source)
    if not tensors:
        msg = f"adapter {source!r} has no tensors"
        raise AdapterError(msg, hint="It was saved before training, or damaged.")
    require_short_names(tensors, source)
    require_separate(tensors, config, source)
    found, targeted = _sorted(tensors, config, source)
    require_targeted(targeted, config, source)
    embeddings = (each for each in found.computed if each.embedding)
    require_plain_embeddings(found.low_rank, (*found.rows, *embeddings), source)
    return Adapter(
        name=name,
        source=source,
        folder=folder,
        format="peft",
        low_rank=found.low_rank,
        saved=found.saved,
        added=found.added,
        rows=found.rows,
        computed=found.computed,
        method=config["peft_type"],
        repeated=found.repeated,
        task_type=config.get("task_type"),
        base_name=config.get("base_model_name_or_path"),
        sha256=sha256_of_files((folder / CONFIG_NAME, path)),
        config=config,
        known_base=read_known_base(metadata, source),
        residual=_residual(config),
        renamed=found.renamed,
    )


def read_tensors(folder: Path, source: str) -> Mapping[str, Tensor]:
    """Return the tensors of the PEFT adapter in `folder` by their keys.

    Args:
        folder: The adapter's directory.
        source: Where it came from, for messages.

    Raises:
        AdapterError: The file is missing or damaged.
    """
    return _read_weights(folder, source)[1]


def _read_weights(
    folder: Path, source: str
) -> tuple[Path, Mapping[str, Tensor], Mapping[str, Any]]:
    """Return the file of tensors, what it holds, and its header's metadata."""
    path = next((folder / each for each in _WEIGHT_NAMES if (folder / each).is_file()), None)
    if path is None:
        msg = f"adapter {source!r} has no {' or '.join(_WEIGHT_NAMES)}"
        raise AdapterError(msg, hint="Point to the folder that PEFT's save_pretrained wrote.")
    try:
        if path.suffix == ".safetensors":
            return path, *read_header(path)
        return path, read_torch_file(path), {}
    except InputError as error:
        raise AdapterError(error.message, hint=error.hint) from error


def _sorted(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[Sorted, tuple[str, ...]]:
    """Return the tensors by what they do, and the modules that the config has to target."""
    if config["peft_type"] in METHODS:
        return sort_method(tensors, config, source)
    found = sort_tensors(tensors, config, source)
    modules = [each.module for each in found.low_rank if each.name is None]
    return found, tuple(each for each in modules if attention_of(each, modules) is None)


def _residual(config: Mapping[str, Any]) -> str | None:
    start = config.get("init_lora_weights")
    return start if isinstance(start, str) and _RESIDUAL.fullmatch(start) else None


def _refuse_unsupported(config: Mapping[str, Any], source: str) -> None:
    """Raise for every kind and setting under which ``W + s·B A`` of the base is not the model."""
    kind = config.get("peft_type")
    if kind != "LORA" and not (isinstance(kind, str) and kind in METHODS):
        reason = NOT_MERGED.get(kind) if isinstance(kind, str) else None
        msg = f"adapter {source!r} has the peft_type {shown(kind)}, which is not merged"
        raise UnsupportedError(
            f"{msg}: {reason}" if reason else msg,
            hint="The methods that are merged: docs/adapters.md, Other methods.",
        )
    for setting, reason in _REFUSED_SETTINGS.items():
        if config.get(setting):
            msg = f"adapter {source!r} sets {setting}: {reason}"
            raise UnsupportedError(
                msg, hint="If PEFT can merge it, export the result of merge_and_unload."
            )
    start = config.get("init_lora_weights")
    changes_base = isinstance(start, str) and start.lower().startswith(_CHANGES_BASE)
    if changes_base and _residual(config) is None:
        msg = (
            f"adapter {source!r} sets init_lora_weights: {shown(start)}: it was trained on a "
            "base from which its first update was subtracted"
        )
        raise UnsupportedError(
            msg,
            hint="Convert it: save_pretrained(…, path_initial_model_for_weight_conversion=…).",
        )
