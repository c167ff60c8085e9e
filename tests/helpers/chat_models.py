"""Tiny decoders with a tokenizer and a chat template, as runtimes for text need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.helpers.models import save_tiny_adapter
from tools.model_families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "CHAT",
    "STOP",
    "VOCABULARY",
    "greedy",
    "greedy_swapped",
    "loaded_tokenizer",
    "logit_losses",
    "save_chat_adapter",
    "save_chat_base",
    "save_chat_tokenizer",
    "save_grown_adapter",
]

VOCABULARY: Final = 320
"""The rows of the families' embeddings."""
CHAT: Final = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STOP: Final = 2
"""The token that ends a text."""
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


def save_grown_adapter(base: Path, folder: Path) -> Any:
    """Save an adapter that was trained with two more tokens and another template.

    Its embeddings and its head are whole, and its tokenizer lies beside it and is returned.
    """
    import peft
    import torch
    import transformers

    tokenizer = loaded_tokenizer(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHAT.replace("</s>", "<|im_end|>").replace("<|assistant|>", "bot:")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["q_proj", "up_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
    )
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    wrapped.save_pretrained(str(folder), save_embedding_layers=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def greedy(
    base: Path,
    adapter: Path | None,
    prompts: Sequence[Sequence[int]],
    count: int,
    values: Mapping[str, Any] | None = None,
    *,
    stop: int = STOP,
    rows: int | None = None,
) -> list[list[int]]:
    """Return the tokens that transformers writes greedily behind prompts, without the stop token.

    Prompts are padded on the left, as transformers wants them.

    Args:
        base: The checkpoint; computed in float32.
        adapter: An adapter that PEFT runs unmerged.
        prompts: Token ids.
        count: The most new tokens.
        values: Parameters to take in place of the checkpoint's.
        stop: The token that ends a row.
        rows: The rows of the embeddings that the adapter was trained with, where they are others.
    """
    import torch

    model = _loaded(base, {} if adapter is None else {"default": adapter}, rows)
    if values is not None:
        state = model.state_dict()
        known = {
            name: torch.tensor(values[plain]).float()
            for name in state
            if (plain := _plain(name)) in values
        }
        assert len(known) >= len(values) // 2
        model.load_state_dict({**state, **known})
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in prompts])
    with torch.no_grad():
        found = model.generate(
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
            eos_token_id=stop,
        )
    whole = [row[longest:].tolist() for row in found]
    return [row[: row.index(stop)] if stop in row else row for row in whole]


def greedy_swapped(
    base: Path, adapters: Mapping[str, Path], prompt: Sequence[int], plan: Sequence[tuple[str, int]]
) -> list[int]:
    """Return the tokens behind a prompt where adapters are exchanged while the text is written.

    The cache of what was written stays. `plan` says which adapter writes how many tokens.
    """
    import torch
    import transformers

    model = _loaded(base, adapters)
    cache = transformers.DynamicCache(config=model.config)
    ids, found = torch.tensor([list(prompt)]), []
    with torch.no_grad():
        for name, count in plan:
            model.set_adapter(name)
            for _ in range(count):
                ids = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1:]
                ids = ids.argmax(-1)
                found.append(int(ids))
    return found


def logit_losses(
    base: Path, adapter: Path, prompt: Sequence[int], tokens: Sequence[int]
) -> list[float]:
    """Return how far below the largest logit of torch each token of a continuation is."""
    import torch

    model = _loaded(base, {"default": adapter})
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits[torch.arange(len(tokens)), torch.tensor(list(tokens))]
    return [float(each) for each in logits.max(-1).values - chosen]


def _plain(name: str) -> str:
    """Return the name that a parameter has without PEFT's wrappers."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def loaded_tokenizer(base: Path) -> Any:
    """Return the tokenizer of a base, as transformers loads it."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(base)


def _loaded(base: Path, adapters: Mapping[str, Path], rows: int | None = None) -> Any:
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    for name, folder in adapters.items():
        if isinstance(model, peft.PeftModel):
            model.load_adapter(str(folder), name)
        else:
            model = peft.PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    return model.eval()
