"""PEFT adapters: ``adapter_config.json`` beside ``adapter_model.safetensors`` or ``.bin``.

Keys are ``base_model.model.<module>.lora_A.weight`` ``[r, in]``, ``….lora_B.weight`` ``[out, r]``,
``….lora_embedding_A`` and ``_B`` (no ``.weight``), and whole parameters for ``modules_to_save`` and
trained biases. The scale is ``alpha / r``, or ``alpha / sqrt(r)`` under rsLoRA, with
``rank_pattern`` and ``alpha_pattern`` matched by PEFT's own rule.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.canonical import Adapter, LowRank, Saved
from lora_export.base.errors import AdapterError, InputError, UnsupportedError
from lora_export.base.files import sha256_of_file
from lora_export.base.safetensors_file import read_header
from lora_export.base.tensors import read_all
from lora_export.base.torch_file import read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.base.tensors import Tensor

__all__ = ["CONFIG_NAME", "is_peft", "read_peft"]

CONFIG_NAME: Final = "adapter_config.json"
_WEIGHT_NAMES: Final = ("adapter_model.safetensors", "adapter_model.bin")
_CONFIG_LIMIT_BYTES: Final = 1 << 22
_WRAPPER: Final = "base_model.model."
_PATTERN_LIMIT: Final = 256
_REPETITIONS_LIMIT: Final = 3
_ALPHA_LIMIT: Final = 1e30
_FACTOR: Final = re.compile(
    r"^(?P<module>.+)\.lora_(?:(?P<kind>[AB])\.weight|embedding_(?P<embedding>[AB]))$"
)

_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that move part of the base into the adapter."""

_WRAPPERS: Final = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)\.")
"""What PEFT's layers add to the path of a parameter."""

_REFUSED_SETTINGS: Final[dict[str, str]] = {
    "use_dora": "DoRA (a learned magnitude per output) is not merged by this version",
    "lora_bias": "a bias on B is not merged by this version",
    "trainable_token_indices": "trained token rows are not merged by this version",
    "target_parameters": "updates of bare parameters (experts) are not merged by this version",
    "alora_invocation_tokens": "an activated LoRA depends on the input: it has no plain merge",
    "layer_replication": "replicated layers change the model's structure: no plain merge exists",
    "megatron_config": "Megatron's parallel layers are not read",
    "use_qalora": "QA-LoRA pools its inputs: it has no plain merge",
    "velora_config": "VeLoRA is not read",
    "kasa_config": "KaSA is not read",
    "monteclora_config": "MonteCLoRA is not read",
    "arrow_config": "Arrow routes between adapters per token: no plain merge exists",
    "use_bdlora": "block-diagonal LoRA is not read",
    "ensure_weight_tying": "adapters that tie weights of their own are not merged by this version",
}
"""Settings that change what the tensors mean; a merge that ignored them would be wrong."""


def is_peft(folder: Path) -> bool:
    """Whether `folder` looks like a PEFT adapter."""
    return (folder / CONFIG_NAME).is_file()


def read_peft(folder: Path, *, name: str, source: str) -> Adapter:
    """Read the PEFT adapter in `folder`; the tensors themselves stay on disk.

    Args:
        folder: The adapter's directory.
        name: The name it goes by in the export.
        source: Where it came from, for messages and the manifest.

    Raises:
        AdapterError: A file is missing or damaged, a factor lacks its partner, ranks disagree.
        UnsupportedError: The adapter is of another kind than LoRA, or uses a refused setting.
    """
    config = _read_config(folder / CONFIG_NAME, source)
    _refuse_unsupported(config, source)
    path = next((folder / each for each in _WEIGHT_NAMES if (folder / each).is_file()), None)
    if path is None:
        msg = f"adapter {source!r} has no {' or '.join(_WEIGHT_NAMES)}"
        raise AdapterError(msg, hint="Point to the folder that PEFT's save_pretrained wrote.")
    try:
        tensors: Mapping[str, Tensor] = (
            read_header(path)[0] if path.suffix == ".safetensors" else read_torch_file(path)
        )
    except InputError as error:
        raise AdapterError(error.message, hint=error.hint) from error
    if not tensors:
        msg = f"adapter {source!r} holds no tensors"
        raise AdapterError(msg, hint="It was saved before training, or damaged.")
    factors, saved, repeated = _sort_tensors(tensors, source)
    digest = hashlib.sha256()
    for file in (folder / CONFIG_NAME, path):
        digest.update(bytes.fromhex(sha256_of_file(file)))
    return Adapter(
        name=name,
        source=source,
        folder=folder,
        format="peft",
        low_rank=tuple(_pair(module, pair, config, source) for module, pair in factors.items()),
        saved=saved,
        repeated=repeated,
        task_type=config.get("task_type"),
        base_name=config.get("base_model_name_or_path"),
        sha256=digest.hexdigest(),
        config=config,
    )


def _read_config(path: Path, source: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _CONFIG_LIMIT_BYTES:
            msg = f"{str(path)!r} is larger than a config can be"
            raise AdapterError(msg)
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        msg = f"cannot read the config of adapter {source!r}: {error.strerror}"
        raise AdapterError(msg, hint=f"Expected {path}.") from error
    except (ValueError, RecursionError) as error:
        msg = f"{str(path)!r} is not readable JSON: {error}"
        raise AdapterError(msg, hint="Copy the adapter again.") from error
    if not isinstance(config, dict):
        msg = f"{str(path)!r} does not hold a table of settings"
        raise AdapterError(msg, hint="Copy the adapter again.")
    return config


def _refuse_unsupported(config: Mapping[str, Any], source: str) -> None:
    """Raise for every kind and setting under which ``W + s·B A`` of the base is not the model."""
    kind = config.get("peft_type")
    if kind != "LORA":
        msg = f"adapter {source!r} is of the kind {kind!r}; only LORA is merged"
        raise UnsupportedError(
            msg, hint="Merge it in PEFT with merge_and_unload, and export the merged checkpoint."
        )
    for setting, reason in _REFUSED_SETTINGS.items():
        if config.get(setting):
            msg = f"adapter {source!r} sets {setting}: {reason}"
            raise UnsupportedError(
                msg, hint="Where PEFT can merge it, export the result of merge_and_unload."
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        msg = (
            f"adapter {source!r} sets init_lora_weights: {start!r}: it was trained on a base from "
            "which its first update had been taken off"
        )
        raise UnsupportedError(
            msg,
            hint="Convert it: save_pretrained(…, path_initial_model_for_weight_conversion=…).",
        )


def _sort_tensors(
    tensors: Mapping[str, Tensor], source: str
) -> tuple[dict[str, dict[str, Tensor]], tuple[Saved, ...], tuple[str, ...]]:
    """Sort tensors into factors by module, whole parameters, and copies; nothing is left over."""
    factors: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    repeated: list[str] = []
    for key, tensor in sorted(tensors.items()):
        if not tensor.dtype.floating:
            msg = f"tensor {key!r} of adapter {source!r} has the dtype {tensor.dtype.name}"
            raise AdapterError(msg, hint="An adapter's tensors are floating-point numbers.")
        path = key.removeprefix(_WRAPPER)
        match = _FACTOR.match(path)
        if match:
            module = match["module"].replace(".base_layer", "")
            kind = match["kind"] or f"embedding_{match['embedding']}"
            if kind in factors.setdefault(module, {}):
                msg = f"adapter {source!r} holds two tensors for {kind} of {module!r}"
                raise AdapterError(msg, hint="The file is damaged, or two adapters were mixed.")
            factors[module][kind] = tensor
        elif "lora_" in path.rpartition(".")[2] or ".lora_" in path:
            msg = f"tensor {key!r} of adapter {source!r} is of no known kind"
            raise UnsupportedError(msg, hint="It was left by a variant of LoRA that is not merged.")
        elif ".original_module." in path:  # the base's own, for PEFT with its adapters disabled
            repeated.append(key)
        else:
            parameter = _WRAPPERS.sub(".", path)
            if parameter in saved:
                _refuse_contradiction(saved[parameter], tensor, source)
                repeated.append(key)
            else:
                saved[parameter] = tensor
    whole = tuple(Saved(name, tensor) for name, tensor in saved.items())
    return factors, whole, tuple(repeated)


def _refuse_contradiction(first: Tensor, second: Tensor, source: str) -> None:
    """Require that a parameter which the file holds twice (``bias: all``) has one value."""
    same_kind = first.dtype == second.dtype and first.shape == second.shape
    if not same_kind or not np.array_equal(read_all(first), read_all(second)):
        msg = f"{first.name!r} and {second.name!r} of adapter {source!r} contradict each other"
        raise AdapterError(msg, hint="They are the same parameter: save the adapter again.")


def _pair(
    module: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> LowRank:
    embedding = any(kind.startswith("embedding") for kind in pair)
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(pair) != set(names):
        msg = f"module {module!r} of adapter {source!r} has only {' and '.join(sorted(pair))}"
        raise AdapterError(msg, hint="Each low-rank update needs both of its factors.")
    a, b = pair[names[0]], pair[names[1]]
    if len(a.shape) != 2 or len(b.shape) != 2:  # noqa: PLR2004  (matrices)
        msg = f"module {module!r} of adapter {source!r} has factors of {len(a.shape)} axes"
        raise UnsupportedError(msg, hint="Convolutions are not merged by this version.")
    rank = a.shape[0]
    if rank == 0 or b.shape[1] != rank:
        msg = (
            f"module {module!r} of adapter {source!r}: A {list(a.shape)} and B {list(b.shape)} "
            "do not share a rank of at least 1"
        )
        raise AdapterError(msg, hint="The adapter is damaged: train or copy it again.")
    return LowRank(module, a, b, _scale(module, rank, config, source), embedding)


def _scale(module: str, rank: int, config: Mapping[str, Any], source: str) -> float:
    """Resolve s: ``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora`` (arXiv 2312.03732)."""
    expected = _by_pattern(config, "rank_pattern", module, config.get("r"))
    alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if expected != rank:
        msg = (
            f"module {module!r} of adapter {source!r} has rank {rank}, "
            f"but its config says {expected!r}"
        )
        raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")
    usable = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not usable or not abs(alpha) <= _ALPHA_LIMIT:
        msg = f"adapter {source!r} has the lora_alpha {str(alpha)[:40]} for module {module!r}"
        raise AdapterError(msg, hint="It must be a finite number.")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _refuse_explosive(pattern: str, module: str, setting: str) -> None:
    """Refuse expressions that could take exponential time: they come from strangers.

    Allowed are alternatives and at most three unbounded repetitions, none of a group.
    """
    if (
        len(pattern) > _PATTERN_LIMIT
        or len(module) > _PATTERN_LIMIT
        or re.search(r"\)\s*[*+?{]|\(\?", pattern)
        or len(re.findall(r"[*+{]", pattern)) > _REPETITIONS_LIMIT
    ):
        msg = f"{setting} has the pattern {pattern[:60]!r}, which could take forever to match"
        raise AdapterError(msg, hint="Write it as plain module names in adapter_config.json.")


def _by_pattern(config: Mapping[str, Any], setting: str, module: str, default: Any) -> Any:
    """Return the setting for `module`: the first pattern that matches, as PEFT matches it."""
    patterns = config.get(setting) or {}
    if not isinstance(patterns, dict):
        msg = f"{setting} is not a table"
        raise AdapterError(msg, hint="The adapter's config is damaged.")
    for pattern, value in patterns.items():
        if pattern == module:
            return value
        _refuse_explosive(pattern, module, setting)
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            msg = f"{setting} has the pattern {pattern!r}, which is no regular expression: {error}"
            raise AdapterError(msg, hint="The adapter's config is damaged.") from error
    return default
