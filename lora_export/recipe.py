"""The recipe: what to build, as validated values. Every key has a flag of the same name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_export.base.errors import UsageError

__all__ = [
    "AdapterSpec",
    "LatencySpec",
    "Recipe",
    "VerifySpec",
    "load_recipe",
    "make_recipe",
    "recipe_from_flags",
]

_LIMIT_BYTES: Final = 1 << 20
_PLANNED: Final = frozenset({"combine", "profiles", "triton", "bundle"})
"""Sections whose stages do not exist yet; naming one is refused rather than ignored."""

_OF_ADAPTERS: Final = ("drop", "format", "alpha", "enable_lora")
"""Keys of every adapter's line that a flag sets for all of them."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterSpec(_Section):
    """One adapter: the name it gets in the export, where it is, what of it is left out.

    Attributes:
        name: Its name in the export; that of its folder or file without one.
        source: Where it is.
        drop: Patterns of tensors that are left out.
        labels: The names of its classes.
        format: Its format, where that is not to be detected.
        alpha: The alpha that it was trained with, where its format does not record it.
        enable_lora: Which blocks a ``MergedLinear`` of loralib adapts.
    """

    name: str | None = None
    source: str
    drop: list[str] = []
    labels: list[str] | None = None
    format: str | None = None
    alpha: float | None = Field(None, allow_inf_nan=False)
    enable_lora: list[bool] | None = None


class VerifySpec(_Section):
    """How parity is proven.

    Attributes:
        enabled: Whether to verify at all.
        dataset: A JSONL file of ``{"text": …, "label": …}``, repeated with the exported graph.
        metric: The metric of that data set.
        seed: Seeds the generated inputs.
        allow_no_effect: Accept an adapter that changes nothing measurable.
    """

    enabled: bool = True
    dataset: str | None = None
    metric: Literal["accuracy"] = "accuracy"
    seed: int = 0
    allow_no_effect: bool = False


class LatencySpec(_Section):
    """How latency is measured and gated.

    Attributes:
        enabled: Whether to measure at all.
        max_ratio: The largest allowed ratio of merged to base latency.
        batch: Batch size of the measured input.
        length: Sequence length of the measured input.
        rounds: Interleaved rounds.
    """

    enabled: bool = True
    max_ratio: float = Field(1.05, gt=0)
    batch: int = Field(1, ge=1)
    length: int = Field(128, ge=1)
    rounds: int = Field(120, ge=10)


class Recipe(_Section):
    """Everything that a build needs; paths are absolute or relative to the recipe's folder."""

    base: str
    adapters: list[AdapterSpec] = []
    task: str | None = None
    labels: list[str] | None = None
    mode: Literal["merged"] = "merged"
    dtype: str | None = None
    opset: int | None = Field(None, ge=18, le=25)
    targets: list[str] = Field([], max_length=1)
    verify: VerifySpec = VerifySpec()
    latency: LatencySpec = LatencySpec()
    output: str
    folder: Path = Field(Path(), exclude=True)

    def path(self, text: str) -> Path:
        """Return `text` as a path, relative ones taken from the recipe's folder."""
        return self.folder / Path(text).expanduser()


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe; what `overrides` gives (from flags) wins.

    Raises:
        UsageError: The file is missing or not YAML, a key is unknown or a value is wrong.
    """
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            msg = f"recipe {str(path)!r} is larger than {_LIMIT_BYTES} bytes"
            raise UsageError(msg)
        table = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        msg = f"cannot read the recipe {str(path)!r}: {error.strerror}"
        raise UsageError(msg, hint="Give a recipe, or --base, --adapter and --out.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        msg = f"the recipe {str(path)!r} is not YAML: {error}"
        raise UsageError(msg, hint="See recipes/minilm-intents/recipe.yaml.") from error
    if not isinstance(table, dict):
        msg = f"the recipe {str(path)!r} holds no keys"
        raise UsageError(msg, hint="See recipes/minilm-intents/recipe.yaml.")
    return make_recipe(_merged(table, overrides or {}), folder=path.parent)


def recipe_from_flags(flags: dict[str, Any]) -> Recipe:
    """Return the recipe that flags alone describe; paths mean the working directory.

    Raises:
        UsageError: As `make_recipe`.
    """
    return make_recipe(_merged({}, flags), folder=Path())


def make_recipe(table: dict[str, Any], *, folder: Path) -> Recipe:
    """Validate the keys of a recipe.

    Raises:
        UsageError: A key is unknown (the nearest known one is named), missing, or has a bad value.
    """
    if planned := sorted(_PLANNED & set(table)):
        msg = f"the recipe's section {planned[0]!r} is not built by this version"
        raise UsageError(msg, hint="Remove it.")
    if "folder" in table:
        msg = "the recipe has the unknown key 'folder'"
        raise UsageError(msg, hint="Paths are taken from the recipe's own folder.")
    try:
        return Recipe.model_validate({**table, "folder": folder})
    except ValidationError as error:
        raise _explain(error) from error


def _merged(table: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return `table` with `overrides`, sections merged key by key.

    Labels and what else was given of adapters as flags take the place of every adapter's own.
    """
    result = dict(table)
    for key, value in overrides.items():
        if key in _OF_ADAPTERS:
            continue
        before = result.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[key] = {**before, **value} if both else value  # type: ignore[dict-item]
    own: dict[str, Any] = {"labels": None} if "labels" in overrides else {}
    own |= {key: overrides[key] for key in _OF_ADAPTERS if key in overrides}
    if own and isinstance(result.get("adapters"), list):
        result["adapters"] = [
            {**row, **own} if isinstance(row, dict) else row for row in result["adapters"]
        ]
    return result


_SECTIONS: Final[dict[str, type[_Section]]] = {
    "verify": VerifySpec,
    "latency": LatencySpec,
    "adapters": AdapterSpec,
}


def _explain(error: ValidationError) -> UsageError:
    """Turn the first finding into one message; an unknown key names its nearest neighbour."""
    findings = error.errors()
    first = next((row for row in findings if row["type"] == "extra_forbidden"), findings[0])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section, _, key = where.rpartition(".")
        model = _SECTIONS.get(section.partition(".")[0], Recipe)
        known = [name for name in model.model_fields if name != "folder"]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return UsageError(
            f"the recipe has the unknown key {where!r}",
            hint=f"Did you mean {near[0]!r}? Known here: {', '.join(known)}.",
        )
    if first["type"] == "missing":
        return UsageError(f"the recipe lacks the key {where!r}", hint=f"Add it, or pass --{where}.")
    return UsageError(f"the recipe's {where!r}: {first['msg']} (got {first['input']!r})")
