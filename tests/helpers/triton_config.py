"""Configurations of Triton's models, parsed with protobuf itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_config"]


def read_config(folder: Path) -> ModelConfig:
    """Return the configuration of the model in `folder`."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
