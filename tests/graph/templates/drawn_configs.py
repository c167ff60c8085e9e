"""Configs drawn at random: sizes, choices, spellings of rotary settings, keys that nobody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

    from lora_export.graph.templates.family import Family

__all__ = ["draw"]

THETAS = (10000.0, 500000.0, 1000000, 12345.0)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
STRANGE = (
    {"an_invented_key": 3},
    {"scale_attn_by_inverse_layer_idx": True},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"partial_rotary_factor": 0.5},
    {"attention_bias": True},
)


def draw(family: Family, rng: random.Random) -> dict[str, Any]:
    """Return a config of `family`: most have a template."""
    heads, head_dim = rng.choice((2, 3, 4, 6)), 2 * rng.randint(2, 9)
    kv_heads = rng.choice([n for n in range(1, heads + 1) if heads % n == 0])
    sizes = {
        "vocab": rng.randint(9, 300), "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "layers": rng.randint(2, 8), "intermediate": rng.randint(8, 90),
        "positions": rng.randint(9, 80), "types": rng.randint(2, 4), "labels": rng.randint(2, 5),
        "window": rng.randint(8, 40), "hidden": heads * head_dim,
    }  # fmt: skip
    config: dict[str, Any] = {"model_type": family.model_type}
    for name, key in family.sizes.items():
        if name in sizes and not (name == "labels" and family.rotary):
            config[key] = sizes[name]
    config |= _settings(family, rng)
    implied = family.absent.get("head_dim") == "=hidden/heads"
    if implied and rng.random() < 0.5:
        del config["head_dim"]
    if family.window is not None:
        config[family.window] = rng.choice((None, sizes["window"]))
    if family.rotary:
        config |= _rope(family, rng)
    if rng.random() < 0.1:
        config |= rng.choice(STRANGE)
    return config


def _settings(family: Family, rng: random.Random) -> dict[str, Any]:
    """Return values of what is compared, of floats and of a key that is irrelevant."""
    config = {
        key: rng.choice(values)
        for key, values in family.choices.items()
        if len(values) > 1 or key in family.absent
    }
    for key in family.floats.values():
        config[key] = rng.choice((1e-5, 1e-6 if family.rotary else 1e-12))
    if "pad_token_id" in family.irrelevant:
        config["pad_token_id"] = rng.choice((0, 1))
    return config


def _rope(family: Family, rng: random.Random) -> dict[str, Any]:
    theta = rng.choice(THETAS)
    scaled = rng.random() < 0.3 and "llama3" in family.rope_types
    table = {"rope_type": "llama3", **LLAMA3} if scaled else {"rope_type": "default"}
    theta = 500000.0 if scaled else theta
    if rng.random() < 0.5:
        return {"rope_parameters": {"rope_theta": theta, **table}}
    return {"rope_theta": theta, "rope_scaling": table if scaled else None}
