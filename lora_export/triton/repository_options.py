"""The options of a model repository, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["HANDFUL", "Backend", "RepositoryOptions"]

Backend = Literal["onnxruntime", "python", "tensorrt"]

_Count = Annotated[int, Field(ge=0, lt=1 << 31)]
_Positive = Annotated[int, Field(ge=1, lt=1 << 31)]

HANDFUL: Final = 4
"""Up to so many merged adapters get a model each; more are served by one of the Python backend."""


class RepositoryOptions(BaseModel):
    """The settings of every model of a repository.

    Attributes:
        max_batch_size: The largest batch that the server makes.
        max_queue_delay_us: How long a request waits for others to share a batch with.
        preferred_batch_sizes: Batches of these sizes are run without waiting.
        max_queue_size: Requests that may wait; more are refused. 0 for no limit.
        queue_timeout_us: How long one may wait before it is refused. 0 for no limit.
        instances: Instances of each model on each device.
        device: ``cpu``, ``gpu``, or None for what the backend takes by itself.
        gpus: The GPUs, by number; all by default.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        cache_bytes: What loaded adapters may take in each instance of a Python-backend model; None
            for 1 GiB of packs, or four sessions.
        response_cache: Whether the server may answer from its response cache.
        warmup: Whether instances run golden inputs before they are ready.
        versions: Which versions are served: the latest so many, ``all``, or these.
        resources: Resources that an instance needs while it runs, for the rate limiter.
        priority: Its priority there; 0 for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    max_batch_size: int = Field(default=16, ge=1, le=65536)
    max_queue_delay_us: _Count = 500
    preferred_batch_sizes: tuple[_Positive, ...] = ()
    max_queue_size: _Count = 0
    queue_timeout_us: _Count = 0
    instances: int = Field(default=1, ge=1, le=1024)
    device: Literal["cpu", "gpu"] | None = None
    gpus: tuple[_Count, ...] = ()
    threads: _Count = 0
    cache_bytes: int | None = Field(default=None, ge=0, lt=1 << 63)
    response_cache: bool = False
    warmup: bool = True
    versions: _Positive | Literal["all"] | tuple[_Positive, ...] = 1
    resources: Mapping[str, _Positive] = Field(default_factory=dict)
    priority: _Count = 0
