"""The tokenizer as a Python-backend model: the first step of an ensemble.

A request has a text for each row. Its rows are padded to the longest, rounded up so that the
requests of several clients more often have the same length and share a batch. Where adapters have
tokenizers of their own, the request names the adapter of each text.
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


class _Tokenizer:
    """One tokenizer, and how its texts are padded."""

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self.longest = int(settings["max_length"])
        self.pad = {
            "input_ids": int(settings["pad_id"]),
            "attention_mask": 0,
            "token_type_ids": int(settings["pad_type_id"]),
        }
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(self.longest)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> Any:
        """Return the tokens of each text."""
        return self._tokenizer.encode_batch(list(texts))


class TritonPythonModel:
    """The model; Triton makes one for each instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the tokenizer, and those of adapters that have another."""
        require_readable_tensors()
        config = json.loads(args["model_config"])
        parameters = {key: row["string_value"] for key, row in config["parameters"].items()}
        self._outputs = {row["name"]: _DTYPES[row["data_type"]] for row in config["output"]}
        folder = Path(__file__).parent
        self._multiple = int(parameters["multiple"])
        self._base = _Tokenizer(folder / "tokenizer.json", parameters)
        lines = json.loads(parameters.get("adapters", "{}"))
        self._own = {name: _Tokenizer(folder / line["file"], line) for name, line in lines.items()}

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
        texts = _strings(request, "text")
        tokenizers_of = self._tokenizers(request, len(texts))
        encoded: list[Any] = [None] * len(texts)
        for each in {id(one): one for one in tokenizers_of}.values():
            places = [at for at, own in enumerate(tokenizers_of) if own is each]
            found = each.encode([texts[at] for at in places])
            for at, tokens in zip(places, found, strict=True):
                encoded[at] = tokens
        if not all(each.ids for each in encoded):
            msg = "a text without a token"
            raise ValueError(msg)
        longest = max((len(each.ids) for each in encoded), default=1)
        most = max((each.longest for each in tokenizers_of), default=self._base.longest)
        length = min(-(-longest // self._multiple) * self._multiple, most)
        tensors = []
        for name, dtype in self._outputs.items():
            values = np.zeros((len(texts), length), dtype)
            for row, each, own in zip(values, encoded, tokenizers_of, strict=True):
                ids = getattr(each, _FIELDS[name])
                row[:] = own.pad[name]
                row[: len(ids)] = ids
            tensors.append(pb_utils.Tensor(name, values))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _tokenizers(self, request: Any, count: int) -> list[_Tokenizer]:
        """Return the tokenizer of each text, by the name of its adapter."""
        if not self._own:
            return [self._base] * count
        names = _strings(request, "adapter")
        if len(names) != count:
            msg = f"{len(names)} name(s) of adapters for {count} text(s)"
            raise ValueError(msg)
        return [self._own.get(name, self._base) for name in names]


def _strings(request: Any, name: str) -> list[str]:
    raw = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
    return [each.decode("utf-8") for each in raw]
