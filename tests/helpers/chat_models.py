"""Tiny decoders with a tokenizer and a chat template, as runtimes for text need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.helpers.models import save_tiny_adapter
from tools.model_families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "CHAT",
    "VOCABULARY",
    "greedy",
    "save_chat_adapter",
    "save_chat_base",
    "save_chat_tokenizer",
]

VOCABULARY: Final = 320
"""The rows of the families' embeddings."""
CHAT: Final = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL: Final = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
_TEXTS: Final = ("the quick brown fox jumps over the lazy dog", "a small model of a large language")


def save_chat_base(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    **changes: Any,
) -> Path:
    """Save a random decoder of a family with a tokenizer that knows a chat template; return it.

    Args:
        family: A name of `tools.model_families.FAMILIES`.
        folder: Created if absent.
        seed: Seeds every parameter.
        dtype: What it is stored in.
        changes: Settings of the config that differ.
    """
    import torch
    import transformers

    row = next(each for each in FAMILIES if each.name == family)
    config = getattr(transformers, row.config)(**{**row.settings, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_chat_tokenizer(folder)
    return folder


def save_chat_tokenizer(folder: Path) -> Path:
    """Save a byte-level BPE tokenizer of `VOCABULARY` tokens as transformers saves one."""
    import tokenizers
    import transformers

    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole.train_from_iterator(_TEXTS, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder


def save_chat_adapter(base: Path, folder: Path, *, seed: int, **settings: Any) -> Path:
    """Save a PEFT adapter of all linear layers, strong enough to change what is written."""
    return save_tiny_adapter(
        base,
        folder,
        task="text-generation",
        seed=seed,
        **{"target_modules": "all-linear", "strength": 0.3, **settings},
    )


def greedy(
    base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """Return the tokens that transformers writes greedily behind prompts, with PEFT's adapter.

    Prompts are padded on the left. A row ends with its stop token, which is in it.
    """
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in prompts])
    with torch.no_grad():
        found = model.eval().generate(
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
            eos_token_id=2,
        )
    rows = [row[longest:].tolist() for row in found]
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]
