"""Inputs for any of the models, and what of its outputs is compared."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import torch

from tools.merge_fuzz.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping

    Feeds = Mapping[str, Any]

__all__ = ["compared", "make_feeds", "outputs_of", "vocabulary_of"]

_BATCH: Final = 2
_LENGTH: Final = 20
_COMPARED: Final = (
    "logits",
    "start_logits",
    "end_logits",
    "prediction_logits",
    "seq_relationship_logits",
    "logits_per_image",
    "last_hidden_state",
    "encoder_last_hidden_state",
    "pooler_output",
)


def vocabulary_of(model: Any) -> int | None:
    """Return how many tokens a model of texts has; None for others."""
    if model.main_input_name != "input_ids":
        return None
    return int(model.get_input_embeddings().weight.shape[0])


def make_feeds(model: Any, seed: int) -> Feeds:
    """Return random inputs by the names that the model's forward takes."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    taken = inspect.signature(model.forward).parameters
    feeds: dict[str, Any] = {"use_cache": False} if "use_cache" in taken else {}
    tokens = vocabulary_of(model) or getattr(config.get_text_config(), "vocab_size", None) or 4
    ids = torch.randint(3, tokens, (_BATCH, _LENGTH), generator=generator)
    if "input_ids" in taken:
        feeds["input_ids"] = ids
        if "attention_mask" in taken:
            feeds["attention_mask"] = torch.ones_like(ids)
        if "token_type_ids" in taken and getattr(config, "type_vocab_size", 0) > 1:
            kinds = torch.randint(0, config.type_vocab_size, ids.shape, generator=generator)
            feeds["token_type_ids"] = kinds
    if "pixel_values" in taken:
        vision = getattr(config, "vision_config", config)
        size = vision.image_size
        feeds["pixel_values"] = torch.randn(
            _BATCH, vision.num_channels, size, size, generator=generator
        )
    if "input_features" in taken:
        frames = 2 * config.max_source_positions
        feeds["input_features"] = torch.randn(
            _BATCH, config.num_mel_bins, frames, generator=generator
        )
    if "decoder_input_ids" in taken:
        feeds["decoder_input_ids"] = ids.flip(1)
    if type(model).__name__.endswith("ForSequenceClassification") and "input_ids" in feeds:
        _end(feeds, config)
    return feeds


def outputs_of(model: Any, feeds: Feeds) -> torch.Tensor:
    """Return the outputs of a model as one vector."""
    with torch.inference_mode(), quiet():
        output = model(**feeds)
    return torch.cat([value.double().flatten() for value in compared(output)])


def compared(output: Any) -> list[torch.Tensor]:
    """Return the tensors of a model's output that are compared."""
    return [output[name] for name in _COMPARED if output.get(name) is not None]


def _end(feeds: dict[str, Any], config: Any) -> None:
    """End each text once with its end-of-sequence token, which BART's classifier reads."""
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and getattr(config, "is_encoder_decoder", False):
        ids = feeds["input_ids"]
        ids[ids == end] = end + 1
        ids[:, -1] = end
