"""Tiny random checkpoints of each architecture, and PEFT adapters for them.

Every parameter is random, LayerNorm's and biases included, and so is B: a transposition, a wrong
scale or a forgotten bias shows in the outputs. Two layers, width 32 and 200 tokens keep them fast.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.graph.spec import tasks

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "KINDS",
    "TARGETS",
    "TinyModels",
    "load_tiny",
    "save_tiny_adapter",
    "save_tiny_base",
    "save_tiny_tokenizer",
    "tiny_config",
]

VOCABULARY: Final = 200
WIDTH: Final = 32
LAYERS: Final = 2
HEADS: Final = 4
INNER: Final = 48
POSITIONS: Final = 160

_ENCODER: Final = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
_LLAMA: Final = {
    **_ENCODER,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rms_norm_eps": 1e-5,
}

_CONFIGS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "bert": ("BertConfig", _ENCODER),
    "roberta": (
        "RobertaConfig",
        {**_ENCODER, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1},
    ),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INNER,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 0,
        },
    ),
    "deberta-v2": (
        "DebertaV2Config",
        {
            **_ENCODER,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "pooler_hidden_size": WIDTH,
        },
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": POSITIONS,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    "llama": ("LlamaConfig", {**_LLAMA, "tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}),
    "vit": (
        "ViTConfig",
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": INNER,
            "image_size": 24,
            "patch_size": 8,
        },
    ),
}

_BART: Final = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "init_std": 0.3,
}
_CONFIGS |= {
    "t5": (
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": INNER,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": ("BartConfig", {**_BART, "max_position_embeddings": POSITIONS}),
    "whisper": (
        "WhisperConfig",
        {**_BART, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 48},
    ),
}

KINDS: Final = tuple(_CONFIGS)

TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "deberta-v2": ("query_proj", "value_proj"),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "llama-tied": ("q_proj", "v_proj"),
    "vit": ("q_proj", "v_proj"),
    "t5": ("q", "v"),
    "bart": ("q_proj", "v_proj"),
    "whisper": ("q_proj", "v_proj"),
}
"""Modules that an adapter changes unless told otherwise."""


def tiny_config(kind: str, **changes: Any) -> Any:
    """Return the transformers config of a tiny `kind`, with `changes`."""
    import transformers

    class_name, settings = _CONFIGS[kind]
    return getattr(transformers, class_name)(**{**settings, **changes})


def save_tiny_base(
    kind: str,
    folder: Path,
    task: str = "text-classification",
    *,
    seed: int = 0,
    dtype: str = "float32",
    labels_count: int = 3,
    max_shard_size: str | None = None,
    tokenizer: bool = False,
    **config_changes: Any,
) -> Path:
    """Save a random checkpoint of `kind` for `task` as safetensors into `folder`; return it.

    Args:
        kind: One of `KINDS`.
        folder: Created if absent.
        task: The model class, by task; a base for a new head is ``feature-extraction``.
        seed: Seeds every parameter.
        dtype: What it is stored in.
        labels_count: Labels of the head, where the task has one.
        max_shard_size: Shards of at most so much (``"20KB"``); one file by default.
        tokenizer: Whether to add a word-level ``tokenizer.json``.
        config_changes: Settings of the config that differ.
    """
    import torch
    import transformers

    row = tasks.by_name(task)
    labels = {"num_labels": labels_count} if row.label_parameters else {}
    config = tiny_config(kind, **{**labels, **config_changes})
    torch.manual_seed(seed)
    model = getattr(transformers, row.auto_class).from_config(config)
    _randomise(model, seed)
    model.to(getattr(torch, dtype))
    shards = {"max_shard_size": max_shard_size} if max_shard_size else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # names as the model has them, where transformers renames those of older checkpoints
        model.save_pretrained(folder, save_original_format=False, **shards)
    if tokenizer:
        save_tiny_tokenizer(folder)
    return folder


def load_tiny(
    folder: Path, task: str, *, labels_count: int | None = None, dtype: str | None = None
) -> Any:
    """Load a checkpoint for `task`; a head that it lacks is made (seeded) and silent."""
    import torch
    import transformers

    row = tasks.by_name(task)
    labels = {"num_labels": labels_count} if labels_count and row.label_parameters else {}
    torch.manual_seed(0)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model = getattr(transformers, row.auto_class).from_pretrained(
            folder,
            dtype=getattr(torch, dtype) if dtype else "auto",
            ignore_mismatched_sizes=True,
            local_files_only=True,
            **labels,
        )
    finally:
        transformers.logging.set_verbosity(level)
    return model.eval()


def save_tiny_adapter(
    base_folder: Path,
    folder: Path,
    *,
    task: str = "text-classification",
    r: int = 4,
    alpha: int = 8,
    target_modules: Any = None,
    seed: int = 1,
    labels_count: int | None = 3,
    dtype: str = "float32",
    strength: float = 0.1,
    config_edits: dict[str, Any] | None = None,
    **lora_config_kwargs: Any,
) -> Path:
    """Save a PEFT LoRA adapter with random A, B, biases and heads into `folder`; return it.

    Args:
        base_folder: The checkpoint that it is for.
        folder: Where it goes.
        task: What it is for; decides the model class and PEFT's ``task_type``.
        r: The rank.
        alpha: LoRA's alpha.
        target_modules: What is adapted; by default `TARGETS` of the checkpoint's kind.
        seed: Seeds every trained tensor.
        labels_count: The width of its head, for tasks that have one.
        dtype: What it is stored in.
        strength: The standard deviation of what it holds.
        config_edits: Changes to the saved ``adapter_config.json``.
        lora_config_kwargs: Further settings of ``peft.LoraConfig``.
    """
    import peft
    import torch

    row = tasks.by_name(task)
    model_type = json.loads((base_folder / "config.json").read_text())["model_type"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_tiny(base_folder, task, labels_count=labels_count, dtype="float32")
        config = peft.LoraConfig(
            task_type=row.peft_type,
            r=r,
            lora_alpha=alpha,
            target_modules=list(target_modules or TARGETS[model_type])
            if not isinstance(target_modules, str)
            else target_modules,
            **lora_config_kwargs,
        )
        wrapped = peft.get_peft_model(model, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(noise * strength)
        wrapped.to(getattr(torch, dtype))
        wrapped.save_pretrained(str(folder))
    if config_edits:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config_edits}))
    return folder


def save_tiny_tokenizer(folder: Path) -> Path:
    """Save a word-level ``tokenizer.json`` of `VOCABULARY` entries: ``w3`` … ``w199``."""
    import tokenizers

    special = {"[PAD]": 0, "[UNK]": 1, "[SEP]": 2}
    words = {f"w{index}": index for index in range(len(special), VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({**special, **words}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(POSITIONS - 2)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _randomise(model: Any, seed: int) -> None:
    """Move every parameter away from its initial value; tied ones stay tied."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@dataclass
class TinyModels:
    """Makes each checkpoint and adapter once; equal arguments give the same folder.

    The folders are shared by all tests: copy one (``shutil.copytree``) before changing it.
    """

    root: Path
    _made: dict[str, Path] = field(default_factory=dict)

    def base(self, kind: str, task: str = "text-classification", **settings: Any) -> Path:
        """Return a checkpoint; `settings` as for `save_tiny_base`."""
        folder, new = self._folder("base", [kind, task, settings])
        return save_tiny_base(kind, folder, task, **settings) if new else folder

    def adapter(self, base_folder: Path, **settings: Any) -> Path:
        """Return an adapter for `base_folder`; `settings` as for `save_tiny_adapter`."""
        folder, new = self._folder("adapter", [str(base_folder), settings])
        return save_tiny_adapter(base_folder, folder, **settings) if new else folder

    def _folder(self, what: str, arguments: list[Any]) -> tuple[Path, bool]:
        key = what + json.dumps(arguments, sort_keys=True, default=str)
        folder = self.root / f"{what}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        new = key not in self._made
        self._made[key] = folder
        return folder, new
