"""Tiny base checkpoints, saved in the ways in which people have them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from safetensors.torch import load_file, save_file

from tools.merge_fuzz.chance import chance
from tools.merge_fuzz.families import Head, by_name, heads_of
from tools.merge_fuzz.quiet import quiet

if TYPE_CHECKING:
    import random
    from pathlib import Path

__all__ = ["Base", "BaseSpec", "draw_base", "load", "make_base"]

_SPREAD: Final = 0.1
_WEIGHTS: Final = "model.safetensors"
_HEADLESS: Final = "AutoModel"
_PRETRAINED: Final = frozenset(
    {_HEADLESS, "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"}
)


@dataclass(frozen=True)
class BaseSpec:
    """One base.

    Attributes:
        family: A name of `families.families`.
        saved: The model class that it was saved by.
        trained: The model class that the adapter is trained under.
        tied: ``tie_word_embeddings`` of its config; None leaves the family's default.
        dtype: What it is stored in.
        layout: ``file``, ``shards`` or ``bin``.
        names: ``hub``, as transformers writes them; ``model``, the model's own; ``bare``, without
            the base model's prefix.
        edits: Keys that are taken out of ``config.json``.
        both_sides: Whether all names of a tied tensor are stored.
        seed: Seeds the values.
    """

    family: str
    saved: str
    trained: str
    tied: bool | None = None
    dtype: str = "float32"
    layout: str = "file"
    names: str = "hub"
    edits: tuple[str, ...] = ()
    both_sides: bool = False
    seed: int = 0

    @property
    def head(self) -> Head:
        """The head under which the adapter is trained."""
        return _head(self.family, self.trained)


@dataclass(frozen=True)
class Base:
    """A base on disk, and in torch as transformers loads it.

    Attributes:
        spec: What it is.
        folder: Its checkpoint.
        model: The model in float32.
        missing: The parameters that the checkpoint lacks, of a head that the adapter brings.
    """

    spec: BaseSpec
    folder: Path
    model: Any
    missing: tuple[str, ...]


def draw_base(random: random.Random, family: str) -> BaseSpec:
    """Draw a base of a family."""
    heads = [head.auto_class for head in heads_of(by_name(family).config)]
    trained = random.choice(heads)
    saved = trained
    if chance(random, 0.25):  # a pretrained checkpoint, and an adapter that brings its head
        saved = random.choice([name for name in heads if name in _PRETRAINED] or [trained])
    edits = [
        key
        for key, share in (("architectures", 0.12), ("tie_word_embeddings", 0.12))
        if chance(random, share)
    ]
    return BaseSpec(
        family=family,
        saved=saved,
        trained=trained,
        tied=random.choice([None, True, False]),
        dtype=random.choice(["float32", "float32", "bfloat16", "float16"]),
        layout=random.choice(["file", "file", "file", "shards", "bin"]),
        names=random.choice(["hub", "hub", "model", "bare"]),
        edits=tuple(edits),
        both_sides=chance(random, 0.15),
        seed=random.randrange(2**31),
    )


def make_base(spec: BaseSpec, folder: Path) -> Base:
    """Write a base into `folder`, and load it.

    Raises:
        ValueError: transformers itself makes nothing of such a base.
    """
    model = _random_model(spec)
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        hub = spec.names == "hub"
        shards = {"max_shard_size": "40KB"} if spec.layout == "shards" else {}
        model.save_pretrained(folder, save_original_format=hub, **shards)
    _rewrite(spec, model, folder)
    loaded, info = load(folder, spec.head)
    missing = tuple(sorted(set(info["missing_keys"])))
    if info["mismatched_keys"]:
        msg = f"the base loads with mismatched keys: {info['mismatched_keys']}"
        raise ValueError(msg)
    return Base(spec, folder, loaded, missing)


def load(folder: Path, head: Head) -> tuple[Any, dict[str, Any]]:
    """Return the model that transformers loads in float32, and what it says of the keys."""
    labels = json.loads((folder / "config.json").read_text()).get("num_labels")
    torch.manual_seed(0)
    with quiet():
        model, info = getattr(transformers, head.auto_class).from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            num_labels=labels or head.labels,
        )
    return model.eval(), info


def _head(family: str, auto_class: str) -> Head:
    heads = heads_of(by_name(family).config)
    return next(head for head in heads if head.auto_class == auto_class)


def _random_model(spec: BaseSpec) -> Any:
    family = by_name(spec.family)
    ties = {} if spec.tied is None else {"tie_word_embeddings": spec.tied}
    labels = {"num_labels": spec.head.labels}
    config = getattr(transformers, family.config)(**{**family.settings, **ties, **labels})
    torch.manual_seed(spec.seed)
    with quiet():
        model = getattr(transformers, spec.saved).from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * _SPREAD)
    return model.to(getattr(torch, spec.dtype)).eval()


def _rewrite(spec: BaseSpec, model: Any, folder: Path) -> None:
    """Change what was saved: config keys, names, ties, the file's format."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in spec.edits}, indent=1))
    if not (folder / _WEIGHTS).is_file():
        return
    tensors = load_file(folder / _WEIGHTS)
    if spec.both_sides and spec.names == "model":
        state = model.state_dict()
        tied = {name: state[name].clone() for name in _tied_names(model) if name in state}
        tensors = {**tied, **tensors}
    if spec.names == "bare":
        prefix = f"{model.base_model_prefix}."
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if spec.layout == "bin":
        (folder / _WEIGHTS).unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def _tied_names(model: Any) -> list[str]:
    return list(getattr(model, "all_tied_weights_keys", None) or {})
