"""The methods whose update is computed here, without torch, by PEFT's ``peft_type``."""

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
from lora_export.adapters.methods.vera import VERA

if TYPE_CHECKING:
    from lora_export.adapters.methods.interface import Method

__all__ = ["METHODS"]

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
    "VERA": VERA,
}
