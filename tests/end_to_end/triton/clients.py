"""Requests as a user's client sends them, over either protocol of tritonclient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.end_to_end.triton.server import Server

__all__ = ["Client", "ask_text", "protocols"]

TYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "float16": "FP16"}


def protocols() -> list[str]:
    """Return the protocols that tritonclient is installed for."""
    try:
        import tritonclient.http  # noqa: F401
    except (ImportError, RuntimeError):  # it raises either where geventhttpclient is missing
        return ["grpc"]
    return ["grpc", "http"]


class Client:
    """A connection to a server."""

    def __init__(self, server: Server, protocol: str = "grpc") -> None:
        self.protocol = protocol
        if protocol == "grpc":
            import tritonclient.grpc as module

            self.client = module.InferenceServerClient(server.grpc)
        else:
            import tritonclient.http as module

            self.client = module.InferenceServerClient(server.http, network_timeout=60)
        self.module: Any = module

    def ask(
        self,
        model: str,
        feeds: Mapping[str, np.ndarray],
        adapter: str | Sequence[str] | None = None,
        *,
        parameters: Mapping[str, str] | None = None,
        output: str = "logits",
    ) -> np.ndarray:
        """Return an output of one request; `adapter` is one for all rows, or one for each."""
        count = len(next(iter(feeds.values())))
        inputs = [self.tensor(name, values) for name, values in feeds.items()]
        if adapter is not None:
            names = [adapter] * count if isinstance(adapter, str) else adapter
            inputs.append(self.tensor("adapter", np.array([[each] for each in names], object)))
        result = self.client.infer(model, inputs, parameters=parameters)
        return np.asarray(result.as_numpy(output))

    def tensor(self, name: str, values: np.ndarray) -> Any:
        """Return an input of a request."""
        kind = "BYTES" if values.dtype == object else TYPES[values.dtype.name]
        one = self.module.InferInput(name, list(values.shape), kind)
        one.set_data_from_numpy(values)
        return one


def ask_text(client: Client, model: str, texts: Sequence[str], adapter: str) -> np.ndarray:
    """Return the logits of texts."""
    column = np.array([[each] for each in texts], object)
    return client.ask(model, {"text": column}, adapter)
