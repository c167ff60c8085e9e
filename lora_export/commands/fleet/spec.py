"""``fleet.yaml``: bases, adapters, variants and targets, as validated values.

A key of a recipe may stand in a base, in a variant and in an adapter; the nearest to the adapter
wins. Sections (``verify``, ``latency``, ``quantize``) are merged key by key.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lora_export.commands.recipe_sections import SECTION_CONFIG
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import UsageError
from lora_export.core.files import user_path
from lora_export.core.modes import ServingMode
from lora_export.core.shown_value import shown
from lora_export.core.suggestions import did_you_mean
from lora_export.core.targets import DEFAULT_TARGET
from lora_export.core.yaml_file import YamlError, read_yaml
from lora_export.ondevice.file_opening import reason_of
from lora_export.triton.repository_options import Backend, RepositoryOptions

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "ADAPTER_KEYS",
    "GRAPH_KEYS",
    "ROW_KEYS",
    "AdapterEntry",
    "BaseEntry",
    "DeploySpec",
    "FleetSpec",
    "GatesSpec",
    "TritonDeployment",
    "Variant",
    "load_fleet",
    "merged_settings",
]

GRAPH_KEYS: Final = (
    "task",
    "mode",
    "dtype",
    "quantize",
    "opset",
    "cache",
    "cache_length",
    "logits",
    "lora_modules",
    "graph_form",
)
"""Keys of a recipe that decide what a base's graphs and weights are: one export for each choice."""

ROW_KEYS: Final = ("labels", "verify", "latency")
"""Keys of a recipe that concern an adapter alone."""

ADAPTER_KEYS: Final = tuple(
    name for name in AdapterSpec.model_fields if name not in {"name", "source"}
)
"""Keys of an adapter's line in a recipe."""

_SECTIONS: Final = ("quantize", "verify", "latency")
_SHOWN: Final = 200
_HINT: Final = "See recipes/fleet/fleet.yaml, and docs/fleet.md."
_NAME: Final = r"^[a-z0-9][a-z0-9_.-]{0,63}$"

_Name = Annotated[str, Field(pattern=_NAME)]


_SHORT: Final = {"cpu": "onnxruntime-cpu", "cuda": "onnxruntime-cuda"}


def _as_list(value: object) -> object:
    """Return one text as a list of one."""
    return [value] if isinstance(value, str) else value


def _targets(names: list[str]) -> list[str]:
    """Return the targets, each once; ``cpu`` and ``cuda`` are short for ONNX Runtime's."""
    return list(dict.fromkeys(_SHORT.get(name, name) for name in names))


class _Layer(BaseModel):
    """An entry that may have keys of a recipe besides its own."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    def settings(self) -> dict[str, Any]:
        """Return the keys of a recipe that stand in it."""
        return dict(self.__pydantic_extra__ or {})


class BaseEntry(_Layer):
    """A base.

    Attributes:
        path: A folder, relative to ``fleet.yaml``, or an id of the hub.
    """

    path: str


class AdapterEntry(_Layer):
    """Adapters of a base.

    Attributes:
        base: The name of the base.
        path: A folder, file or id of the hub; or a pattern such as ``adapters/intents-*``.
        name: Its name in exports; that of its folder by default. Not with a pattern.
        exclude: Patterns of folders that ``path`` matches and that are left out.
    """

    base: str
    path: str
    name: str | None = None
    exclude: Annotated[list[str], BeforeValidator(_as_list)] = []


class Variant(_Layer):
    """A way to export a base.

    Attributes:
        name: What it is called; its mode, dtype and quantization by default.
    """

    name: _Name | None = None


class GatesSpec(BaseModel):
    """The gates of every row.

    Attributes:
        max_ratio: The largest latency relative to the base; not measured without it.
        strict: Whether what is ambiguous fails.
    """

    model_config = SECTION_CONFIG

    max_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    strict: bool = False


class TritonDeployment(RepositoryOptions):
    """A model repository for the Triton server; its models are called as base and variant.

    Attributes:
        repository: Where it is, relative to ``fleet.yaml``.
        backend: ``onnxruntime``, ``python`` or ``tensorrt``; what fits the export by default.
        way: How a model of the Python backend runs an adapter.
        text: Whether there is an ensemble that takes texts.
        hardlink: Whether files of the export are hard-linked instead of copied.
    """

    repository: str
    backend: Backend | None = None
    way: ServingMode | None = None
    text: bool = False
    hardlink: bool = False


def _as_repository(value: object) -> object:
    """Return a path as the section that it stands for."""
    return {"repository": value} if isinstance(value, str) else value


class DeploySpec(BaseModel):
    """The places that what passed goes to, besides the store.

    Attributes:
        triton: A model repository: its path alone, or with settings of its models.
    """

    model_config = SECTION_CONFIG

    triton: Annotated[TritonDeployment | None, BeforeValidator(_as_repository)] = None


class FleetSpec(BaseModel):
    """The contents of ``fleet.yaml``.

    Attributes:
        bases: The bases by name.
        adapters: The adapters of each.
        variants: The ways to export them; merged, by default.
        targets: Where they run: engines are built for TensorRT for RTX, bundles for devices.
        gates: What fails a row.
        deploy: Where what passed goes, besides the store.
        store: The directory of the results.
        folder: The directory that relative paths start from.
    """

    model_config = SECTION_CONFIG

    bases: dict[_Name, BaseEntry] = Field(min_length=1)
    adapters: list[AdapterEntry] = Field(min_length=1)
    variants: list[Variant] = Field(default=[Variant()], min_length=1)
    targets: Annotated[list[str], BeforeValidator(_as_list), AfterValidator(_targets)] = Field(
        default=[DEFAULT_TARGET], min_length=1
    )
    gates: GatesSpec = GatesSpec()
    deploy: DeploySpec = DeploySpec()
    store: str
    folder: Path = Field(default=Path(), exclude=True)

    def path(self, text: str) -> Path:
        """Return `text` as a path, relative ones taken from the folder of ``fleet.yaml``."""
        return self.folder / user_path(text)


def load_fleet(path: str | Path) -> FleetSpec:
    """Read ``fleet.yaml``.

    Raises:
        UsageError: It is missing or not YAML, a key is unknown or a value is wrong.
    """
    path = user_path(path)
    try:
        table = read_yaml(path)
    except OSError as error:
        msg = f"cannot read the fleet {str(path)!r}: {reason_of(error)}"
        raise UsageError(msg, hint=_HINT) from error
    except YamlError as error:
        msg = f"the fleet {str(path)!r} is not YAML: {error}"
        raise UsageError(msg, hint=_HINT) from error
    if not isinstance(table, dict):
        msg = f"the fleet {str(path)!r} has no keys"
        raise UsageError(msg, hint=_HINT)
    if "folder" in table:
        raise _unknown("folder", tuple(FleetSpec.model_fields))
    try:
        spec = FleetSpec.model_validate({**table, "folder": path.parent})
    except ValidationError as error:
        raise _explain(error) from error
    _require_keys(spec)
    return spec


def merged_settings(*layers: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of all layers; a later one wins, sections are merged key by key.

    >>> merged_settings({"verify": {"seed": 1}}, {"verify": {"enabled": False}, "dtype": "float16"})
    {'verify': {'seed': 1, 'enabled': False}, 'dtype': 'float16'}
    """
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = found.get(key)
            if key == "quantize" and isinstance(value, str):
                value = {"weights": value}  # noqa: PLW2901  (the short form of the section)
            both = key in _SECTIONS and isinstance(before, dict) and isinstance(value, dict)
            found[key] = {**before, **value} if both else value  # type: ignore[dict-item]
    return found


def _require_keys(spec: FleetSpec) -> None:
    """Require that entries have keys of recipes only, and adapters bases that there are."""
    recipe = {*GRAPH_KEYS, *ROW_KEYS}
    for name, base in spec.bases.items():
        _require_known(base, recipe, f"bases.{name}", BaseEntry)
    for at, variant in enumerate(spec.variants):
        _require_known(variant, recipe, f"variants.{at}", Variant)
    for at, adapter in enumerate(spec.adapters):
        _require_known(adapter, {*recipe, *ADAPTER_KEYS}, f"adapters.{at}", AdapterEntry)
        if adapter.base not in spec.bases:
            msg = f"adapters.{at} is of the base {shown(adapter.base, _SHOWN)}, which there is not"
            raise UsageError(msg, hint=did_you_mean(adapter.base, spec.bases))


def _require_known(
    entry: _Layer, keys: Collection[str], where: str, model: type[BaseModel]
) -> None:
    for key in entry.settings():
        if key not in keys:
            raise _unknown(f"{where}.{key}", (*model.model_fields, *sorted(keys)))


def _unknown(where: str, known: Collection[str]) -> UsageError:
    key = where.rpartition(".")[2]
    msg = f"the fleet has the unknown key {shown(where, _SHOWN)}"
    return UsageError(msg, hint=did_you_mean(key, known))


def _explain(error: ValidationError) -> UsageError:
    findings = error.errors(include_url=False)
    first = next((row for row in findings if row["type"] == "extra_forbidden"), findings[0])
    where = ".".join(str(part)[:_SHOWN] for part in first["loc"]) or "the document"
    if first["type"] == "extra_forbidden":
        model = _model_of(first["loc"])
        return _unknown(where, [name for name in model.model_fields if name != "folder"])
    if first["type"] == "missing":
        return UsageError(f"the fleet has no key {where!r}", hint=_HINT)
    value = shown(first["input"], _SHOWN)
    return UsageError(f"the key {where!r} of the fleet: {first['msg']} (got {value})", hint=_HINT)


def _model_of(place: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model of the section that holds a key."""
    sections: dict[tuple[int | str, ...], type[BaseModel]] = {
        ("gates",): GatesSpec, ("deploy",): DeploySpec, ("deploy", "triton"): TritonDeployment,
    }  # fmt: skip
    return sections.get(place[:-1], FleetSpec)
