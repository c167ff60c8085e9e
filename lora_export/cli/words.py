"""Words that an option takes: targets, tasks, dtypes and others, with hints and completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.core.errors import LoraExportError, UnsupportedError, UsageError
from lora_export.core.suggestions import did_you_mean
from lora_export.core.targets import PRECISIONS, TARGETS
from lora_export.graph.spec.tasks import OTHER_NAMES, TASKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from click.shell_completion import CompletionItem

    WordType = click.ParamType[str]
else:
    WordType = click.ParamType  # not generic before click 8.5

__all__ = [
    "ADAPTER_FORMAT",
    "COMBINE_METHOD",
    "DEVICE",
    "DTYPE",
    "METRIC",
    "PRECISION",
    "TARGET",
    "TASK",
    "Word",
]


class Word(WordType):
    """A word of a list; another is an error that names the nearest.

    Args:
        name: What the words are: ``target``.
        choices: The words that help and completion show.
        also: Other spellings, each with the word that it means.
        error: The class of the error for another word, the one of the same word in a recipe.
    """

    def __init__(
        self,
        name: str,
        choices: Iterable[str],
        also: Mapping[str, str] | None = None,
        *,
        error: type[LoraExportError] = UsageError,
    ) -> None:
        self.name = name
        self._error = error
        self.choices = tuple(choices)
        self._also = dict(also or {})

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002  (click's signature)
        ctx: click.Context | None,  # noqa: ARG002
    ) -> str:
        """Return the word that `value` means."""
        text = str(value)
        if text in self.choices:
            return text
        if text not in self._also:
            msg = f"unknown {self.name} {text!r}"
            raise self._error(msg, hint=did_you_mean(text, self.choices))
        return self._also[text]

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the words that begin with `incomplete`."""
        from click.shell_completion import CompletionItem

        del ctx, param
        return [CompletionItem(each) for each in self.choices if each.startswith(incomplete)]


_ENGINES: Final = [row.name for row in TARGETS.values() if row.tensorrt or row.rtx]
_DTYPES: Final = {**PRECISIONS, "half": "float16", "bf16": "bfloat16"}
_TORCH: Final = {f"torch.{name}": name for name in PRECISIONS.values()}

TARGET: Final = Word("target", TARGETS)
DEVICE: Final = Word("target", _ENGINES, {name: name for name in TARGETS if name not in _ENGINES})
"""A target that engines are built for; for another one the command says why there is none."""
TASK: Final = Word("task", TASKS, OTHER_NAMES)
DTYPE: Final = Word("dtype", PRECISIONS.values(), {**_DTYPES, **_TORCH}, error=UnsupportedError)
PRECISION: Final = Word("precision", PRECISIONS, {d: p for p, d in PRECISIONS.items()})
ADAPTER_FORMAT: Final = Word(
    "adapter format", ("peft", "loralib", "kohya", "mlx", "gguf", "torchtune", "delta")
)
METRIC: Final = Word(
    "metric",
    ("accuracy", "f1", "matthews", "pearson", "exact_match", "rouge", "bleu", "perplexity"),
)
COMBINE_METHOD: Final = Word(
    "method",
    ("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties",
     "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"),
)  # fmt: skip
