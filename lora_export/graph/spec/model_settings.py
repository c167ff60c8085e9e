"""A checkpoint's ``config.json`` as transformers reads it, and the settings that it ignores.

    {"__float__": "Infinity"}   stands for the number, which JSON cannot write

A setting that only older versions of transformers read is none that a graph may leave out: the
model is built, without a word, as if the setting were not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.json_file import JsonObject

__all__ = ["plain_settings", "refuse_what_is_passed_over"]

_FLOAT: Final = "__float__"
_FLOATS: Final = {name: float(name) for name in ("Infinity", "-Infinity", "NaN")}
_NOT_BUILT: Final = ("auto_map", "quantization_config")

_SPARSE: Final = ("block_sparse",)
_MADE_BY: Final = (("position_embedding_type", "relative_key", "distance_embedding"),)
"""A setting, how its values begin, and what a model that reads them has among its parameters."""


def plain_settings(config: Mapping[str, Any]) -> JsonObject:
    """Return the settings that the model is built from."""
    return {name: _decoded(value) for name, value in config.items() if name not in _NOT_BUILT}


def refuse_what_is_passed_over(model: Any, settings: Mapping[str, Any]) -> None:
    """Refuse a model that was built, or would be traced, as if a setting were not there.

    BigBird's sparse attention is such a setting: texts as short as the traced one turn it off.

    Raises:
        UnsupportedError: The setting's parameters are not in the model (BERT's relative positions,
            which transformers 5 no longer has).
    """
    if getattr(model.config, "attention_type", None) in _SPARSE:
        msg = f"{type(model).__name__} attends to all of a short text and to blocks of a long one"
        raise UnsupportedError(msg, hint="Set attention_type to original_full.")
    for name, beginning, part in _MADE_BY:
        value = settings.get(name)
        if not isinstance(value, str) or not value.startswith(beginning):
            continue
        if not any(part in parameter for parameter, _ in model.named_parameters()):
            msg = (
                f"{type(model).__name__} does not know {name} {value!r} of the checkpoint's config"
            )
            raise UnsupportedError(
                msg, hint="Export it with an older transformers, and give that graph with --graph."
            )


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_FLOAT} and isinstance(value[_FLOAT], str):
            return _FLOATS.get(value[_FLOAT], value)
        return {name: _decoded(each) for name, each in value.items()}
    return [_decoded(each) for each in value] if isinstance(value, list) else value
