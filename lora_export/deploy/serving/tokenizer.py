"""Texts to what a graph reads, as a Python-backend model; the first step of an ensemble.

A request has a text for each row. Its rows are padded to the longest, rounded up so that the
requests of several clients more often have the same length and share a batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import triton_python_backend_utils as pb_utils  # Triton's own

from .probe import require_readable_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["TritonPythonModel"]

_DTYPES = {"TYPE_INT64": np.int64, "TYPE_INT32": np.int32}
_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class TritonPythonModel:
    """What Triton makes one of for each instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the tokenizer."""
        require_readable_tensors()
        config = json.loads(args["model_config"])
        parameters = {key: row["string_value"] for key, row in config["parameters"].items()}
        self._outputs = {row["name"]: _DTYPES[row["data_type"]] for row in config["output"]}
        tokenizer = tokenizers.Tokenizer.from_file(str(Path(__file__).parent / "tokenizer.json"))
        multiple, longest = int(parameters["multiple"]), int(parameters["max_length"])
        tokenizer.enable_truncation(longest)
        tokenizer.no_padding()
        self._pad = {
            "input_ids": int(parameters["pad_id"]),
            "attention_mask": 0,
            "token_type_ids": int(parameters["pad_type_id"]),
        }
        self._multiple, self._longest = multiple, longest
        self._tokenizer = tokenizer

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with the tokens of its texts."""
        return [self._answered(request) for request in requests]

    def _answered(self, request: Any) -> Any:
        """Answer one request; whatever is wrong with it is an error of its own."""
        try:
            return self._tokens(request)
        except Exception as error:  # noqa: BLE001  (the other requests have nothing to do with it)
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(
                output_tensors=[], error=pb_utils.TritonError(f"text: {error}", code)
            )

    def _tokens(self, request: Any) -> Any:
        raw = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        texts = [each.decode("utf-8") for each in raw]
        encoded = self._tokenizer.encode_batch(texts)
        if not all(each.ids for each in encoded):
            msg = "a text without a token"
            raise ValueError(msg)
        longest = max((len(each.ids) for each in encoded), default=1)
        length = min(-(-longest // self._multiple) * self._multiple, self._longest)
        tensors = []
        for name, dtype in self._outputs.items():
            values = np.full((len(texts), length), self._pad[name], dtype)
            for row, each in zip(values, encoded, strict=True):
                ids = getattr(each, _FIELDS[name])
                row[: len(ids)] = ids
            tensors.append(pb_utils.Tensor(name, values))
        return pb_utils.InferenceResponse(output_tensors=tensors)
