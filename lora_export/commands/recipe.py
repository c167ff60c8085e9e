"""The recipe: what to build, as validated values, from a YAML file or from flags.

Most flags set a key of the recipe, usually of the same name; some exist in one place only
(``profiles`` in a recipe, ``--strict`` as a flag).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from lora_export.commands.recipe_sections import (
    SECTION_CONFIG,
    BundleSpec,
    CombineSpec,
    LatencySpec,
    Metric,
    QuantizeSpec,
    TritonSpec,
    VerifySpec,
    as_section,
)
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import UsageError
from lora_export.core.files import user_path
from lora_export.core.graph_forms import DEFAULT_FORM, GraphForm
from lora_export.core.modes import Mode
from lora_export.core.shown_value import shown
from lora_export.core.suggestions import did_you_mean
from lora_export.layouts.runtime_names import RuntimeName
from lora_export.ondevice.file_opening import reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BundleSpec",
    "CombineSpec",
    "LatencySpec",
    "Metric",
    "QuantizeSpec",
    "Recipe",
    "TritonSpec",
    "VerifySpec",
    "load_recipe",
    "make_combine",
    "make_recipe",
    "make_specs",
    "make_triton",
    "recipe_from_flags",
]

_Axis = Annotated[int, Field(lt=1 << 31)]

_EXAMPLE: Final = "See recipes/minilm-intents/recipe.yaml."
_FLAGS_EXAMPLE: Final = "For example: --base ./base --adapter ./adapter --out out"
_SHOULD: Final = "Input should "
"""The beginning of pydantic's messages on a value."""
_SHOWN: Final = 200
"""How much of a wrong value a message shows."""

_OF_ADAPTERS: Final = ("drop", "format", "alpha", "enable_lora", "subfolder", "as_rank")
"""Keys of every adapter's line that a flag sets for all of them."""


class Recipe(BaseModel):
    """Everything that a build needs; paths are absolute or relative to the recipe's folder.

    Attributes:
        base: The base checkpoint: a folder, or an id of the hub.
        base_override: The original of a base that is stored quantized, whose weights are exported.
        graph: An ONNX file of the base that another exporter wrote; it is traced by default.
        adapters: The LoRA adapters; none exports the base alone.
        combine: How all adapters become one graph; each has its own by default.
        task: The task, as transformers names its pipelines; by default as the checkpoint says.
        labels: The names of the classes, for every adapter that has none of its own.
        mode: ``merged``: a graph for each adapter; ``swappable``: one graph that takes any adapter;
            ``batched``: one graph that takes an adapter for each row of a batch.
        lora_modules: Which modules of a swappable graph can be adapted, whole names or their ends;
            those that the adapters change by default.
        dtype: ``float32``, ``float16`` or ``bfloat16``; that of the checkpoint by default.
        layouts: Runtimes that get a directory each, ``<output>-<runtime>/``; see `layout`.
        quantize: Which weights are stored as integers of four or eight bits; none by default.
        opset: The ONNX opset; that of the target by default.
        graph_form: ``portable``: ONNX's own operators; ``ort``: a decoder with ONNX Runtime's.
        cache: Whether a decoder has its keys and values as inputs and outputs; yes by default.
        cache_length: The positions of a static cache of a decoder; it grows by default.
        logits: Whether a decoder returns the logits of all positions or of the last; all by
            default.
        targets: Where the graph will run: the name of one target.
        profiles: The shapes that engines cover: each profile gives axes a size, or a range of
            smallest, tuned for and largest; see `lora_export.engines.profiles`.
        verify: The settings of the verification.
        latency: The settings of the latency measurement and its gate.
        bundle: The bundle for the target.
        triton: A model repository for the Triton server; none by default.
        output: The export directory.
    """

    model_config = SECTION_CONFIG

    base: str
    base_override: str | None = None
    graph: str | None = None
    adapters: list[AdapterSpec] = []
    combine: CombineSpec | None = None
    task: str | None = None
    labels: list[str] | None = None
    mode: Literal[Mode.MERGED, Mode.SWAPPABLE, Mode.BATCHED] = Mode.MERGED
    lora_modules: list[str] | None = None
    dtype: str | None = None
    quantize: Annotated[QuantizeSpec, BeforeValidator(as_section)] | None = None
    opset: int | None = Field(default=None, ge=18, le=25)
    graph_form: GraphForm = DEFAULT_FORM
    cache: bool | None = None
    cache_length: int | None = Field(default=None, ge=1, le=1 << 24)
    logits: Literal["all", "last"] | None = None
    targets: list[str] = Field(default=[], max_length=1)
    profiles: list[dict[str, _Axis | tuple[_Axis, _Axis, _Axis]]] = []
    verify: VerifySpec = Field(default_factory=VerifySpec)
    latency: LatencySpec = Field(default_factory=LatencySpec)
    bundle: BundleSpec = Field(default_factory=BundleSpec)
    triton: TritonSpec | None = None
    layouts: list[RuntimeName] = []
    output: str
    folder: Path = Field(default=Path(), exclude=True)

    def path(self, text: str) -> Path:
        """Return `text` as a path, relative ones taken from the recipe's folder."""
        return self.folder / user_path(text)


def load_recipe(path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file; relative paths in it are taken from its folder.
        overrides: Keys of the recipe whose values win over the file's, as those of flags do.

    Raises:
        UsageError: The file is missing or not YAML, a key is unknown or a value is wrong.
    """
    from lora_export.core.yaml_file import YamlError, read_yaml

    path = user_path(path)
    try:
        table = read_yaml(path)
    except OSError as error:
        msg = f"cannot read the recipe {str(path)!r}: {reason_of(error)}"
        raise UsageError(msg, hint="Give a recipe, or --base, --adapter and --out.") from error
    except YamlError as error:
        msg = f"the recipe {str(path)!r} is not YAML: {error}"
        raise UsageError(msg, hint=_EXAMPLE) from error
    if not isinstance(table, dict):
        msg = f"the recipe {str(path)!r} is not a mapping of keys to values"
        raise UsageError(msg, hint=_EXAMPLE)
    return make_recipe(_merged(table, dict(overrides or {})), folder=path.parent)


def recipe_from_flags(flags: dict[str, Any]) -> Recipe:
    """Return the recipe that flags alone describe; paths mean the working directory.

    Raises:
        UsageError: As `make_recipe`.
    """
    return make_recipe(_merged({}, flags), folder=Path(), flags=True)


def make_recipe(table: dict[str, Any], *, folder: Path, flags: bool = False) -> Recipe:
    """Validate the keys of a recipe.

    Args:
        table: The keys.
        folder: The directory that relative paths start from.
        flags: Whether the keys come from flags alone; messages then name flags.

    Raises:
        UsageError: A key is unknown, missing, or has a bad value.
    """
    if "folder" in table:
        msg = "the recipe has the unknown key 'folder'"
        raise UsageError(msg, hint="Paths are taken from the recipe's own folder.")
    try:
        return Recipe.model_validate({**table, "folder": folder})
    except ValidationError as error:
        raise _explain(error, flags=flags) from error


def make_specs(rows: list[dict[str, Any]], scales: dict[str, float]) -> list[AdapterSpec]:
    """Return the adapters that flags describe, scaled.

    Raises:
        UsageError: A value is wrong, or a scale belongs to no adapter.
    """
    try:
        return [AdapterSpec.model_validate(row) for row in _scaled(rows, scales)]
    except ValidationError as error:
        raise _explain(error, section="adapters", flags=True) from error


def make_combine(table: dict[str, Any]) -> CombineSpec | None:
    """Return the section ``combine`` that flags describe; None without any.

    Raises:
        UsageError: A value is wrong, or the method is missing.
    """
    if not table:
        return None
    try:
        return CombineSpec.model_validate(table)
    except ValidationError as error:
        raise _explain(error, section="combine", flags=True) from error


def make_triton(table: dict[str, Any]) -> TritonSpec:
    """Return the section ``triton`` that flags describe.

    Raises:
        UsageError: A value is wrong.
    """
    try:
        return TritonSpec.model_validate(table)
    except ValidationError as error:
        raise _explain(error, section="triton", flags=True) from error


def _scaled(rows: list[Any], scales: dict[str, float]) -> list[Any]:
    """Return the rows of adapters with their scales: that of ``""`` goes to all without a name."""
    names = [
        str(row.get("name") or Path(str(row.get("source"))).name)
        for row in rows
        if isinstance(row, dict)
    ]
    if unknown := sorted(set(scales) - {"", *names}):
        msg = f"--scale names the unknown adapter {unknown[0]!r}"
        known = ", ".join(name if len(name) <= _SHOWN else shown(name) for name in names)
        raise UsageError(msg, hint=f"The adapters are: {known or 'none'}.")
    if not scales:
        return rows
    return [
        {**row, "scale": scales.get(name, scales.get("", row.get("scale", 1.0)))}
        if isinstance(row, dict)
        else row
        for row, name in zip(rows, names, strict=False)
    ]


def _merged(table: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return `table` with `overrides`, sections merged key by key.

    Labels and what else was given of adapters as flags take the place of every adapter's own.
    """
    result = dict(table)
    for key, value in overrides.items():
        if key in {*_OF_ADAPTERS, "scale"}:
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
    if overrides.get("scale") and isinstance(result.get("adapters"), list):
        result["adapters"] = _scaled(result["adapters"], overrides["scale"])
    return result


_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "verify": VerifySpec,
    "latency": LatencySpec,
    "bundle": BundleSpec,
    "adapters": AdapterSpec,
    "combine": CombineSpec,
    "quantize": QuantizeSpec,
    "triton": TritonSpec,
}


_FLAGS: Final = {
    "adapters.name": "adapter",
    "adapters.source": "adapter",
    "combine.density": "combine-density",
    "combine.majority_sign_method": "combine-sign",
    "combine.method": "combine",
    "combine.name": "combine-name",
    "combine.rank": "combine-rank",
    "combine.weights": "combine-weights",
    "output": "out",
    "quantize.block_size": "quantize-block-size",
    "quantize.keep": "quantize-keep",
    "quantize.method": "quantize-method",
    "quantize.weights": "quantize",
    "targets": "target",
    "triton.adapters": "adapter",
    "triton.gpus": "gpu",
    "triton.preferred_batch_sizes": "preferred-batch-size",
    "triton.resources": "resource",
}
"""Flags whose name is not the last part of their key."""


def _flag(where: Sequence[str]) -> str:
    """Return the flag of a key: its last part, or what the table says."""
    parts = [part for part in where if not part.isdecimal()]
    for end in range(len(parts), 0, -1):
        if (name := _FLAGS.get(".".join(parts[:end]))) is not None:
            return f"--{name}"
    return f"--{parts[-1].replace('_', '-')}"


def _explain(error: ValidationError, *, section: str = "", flags: bool = False) -> UsageError:
    """Turn the first finding into one message, about a key of the recipe or about a flag."""
    findings = error.errors()
    first = next((row for row in findings if row["type"] == "extra_forbidden"), findings[0])
    parts = [str(part)[:_SHOWN] for part in (section, *first["loc"]) if part != ""]
    where = ".".join(parts)
    if first["type"] == "extra_forbidden":
        parent, _, key = where.rpartition(".")
        model = _SECTIONS.get(parent.partition(".")[0], Recipe)
        known = [name for name in model.model_fields if name != "folder"]
        return UsageError(
            f"the recipe has the unknown key {where!r}", hint=did_you_mean(key, known)
        )
    if first["type"] == "missing":
        if flags:
            return UsageError(f"{_flag(parts)} is missing", hint=_FLAGS_EXAMPLE)
        return UsageError(
            f"the recipe has no key {where!r}", hint=f"Add it, or pass {_flag(parts)}."
        )
    value = shown(first["input"], _SHOWN)
    subject = _flag(parts) if flags else f"the key {where!r} of the recipe"
    if first["msg"].startswith(_SHOULD):
        return UsageError(f"{subject} must {first['msg'].removeprefix(_SHOULD)}, got {value}")
    return UsageError(f"{subject}: {first['msg']} (got {value})")
