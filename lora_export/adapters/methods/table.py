"""Every method of PEFT's, by ``peft_type``: how it is merged, or why it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.methods.adalora import ADALORA
from lora_export.adapters.methods.beft import BEFT
from lora_export.adapters.methods.boft import BOFT
from lora_export.adapters.methods.fourierft import FOURIERFT
from lora_export.adapters.methods.hra import HRA
from lora_export.adapters.methods.ia3 import IA3
from lora_export.adapters.methods.ln_tuning import LN_TUNING
from lora_export.adapters.methods.loha import LOHA
from lora_export.adapters.methods.lokr import LOKR
from lora_export.adapters.methods.oft import OFT
from lora_export.adapters.methods.through_peft import ROUTES
from lora_export.adapters.methods.trainable_tokens import TRAINABLE_TOKENS
from lora_export.adapters.methods.vera import VERA

if TYPE_CHECKING:
    from lora_export.adapters.methods.interface import Method

__all__ = ["METHODS", "NOT_MERGED"]

METHODS: Final[dict[str, Method]] = {
    "ADALORA": ADALORA,
    "BEFT": BEFT,
    "BOFT": BOFT,
    "FOURIERFT": FOURIERFT,
    "HRA": HRA,
    "IA3": IA3,
    "LN_TUNING": LN_TUNING,
    "LOHA": LOHA,
    "LOKR": LOKR,
    "OFT": OFT,
    "TRAINABLE_TOKENS": TRAINABLE_TOKENS,
    "VERA": VERA,
    **ROUTES,
}
"""The methods that are merged, besides LoRA."""

_PROMPT: Final = "it adds tokens or states to the input, and changes no weight"
NOT_MERGED: Final[dict[str, str]] = {
    "ADAPTION_PROMPT": _PROMPT,
    "CARTRIDGE": _PROMPT,
    "CPT": _PROMPT,
    "FROD": "it decomposes the weights of several layers together",
    "GLORA": "its merge makes a bias of the weight, also for modules that have none",
    "LILY": "it routes between updates by the input",
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "POLY": "it mixes updates by the task of each input",
    "PREFIX_TUNING": _PROMPT,
    "PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
    "SHADOW": "its update depends on the input",
    "XLORA": "it mixes adapters by the input",
}
"""The methods that are not, with the reason."""
