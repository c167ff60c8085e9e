"""Methods whose merge is PEFT's own: one layer at a time, in torch, in float32.

A layer of the weight's shape is built with the weight in it. PEFT injects the method with the
adapter's config, loads that layer's tensors and merges, and the new weight is read back. In memory
are one weight, a few copies of it, and what PEFT makes of it (a singular value decomposition for
some). The settings that say which layers are adapted are replaced by the one path.

Where layers share matrices as large as the largest of them (RandLoRA, PVeRA), an empty layer of
that size stands beside. RandLoRA's are as large as the longer and the shorter side of all layers:
the empty one then has its longer side where the layer has it. What depends on several weights at
once is refused by name.
"""

from __future__ import annotations

import importlib.util
import re
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.canonical import Computed, Transform
from lora_export.adapters.methods.interface import Method
from lora_export.core.errors import AdapterError, MissingRuntimeError, UnsupportedError
from lora_export.core.installation import install_command
from lora_export.core.shown_value import first_line
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["ROUTES"]

_MATRIX: Final = 2
_EMPTY: Final = "zz_empty_layer"
_NUMBERS: Final = re.compile(r"\d+")
_ONE_AT_A_TIME: Final = threading.Lock()
"""Weights are merged in several threads; PEFT and torch share a generator, and warnings."""

_ONE_LAYER: Final[dict[str, Any]] = {
    "task_type": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "modules_to_save": None,
    "bias": "none",
    "inference_mode": True,
    "proportional_parameters": False,
}
"""Settings that say which layers are adapted; of these, the ones that a config has are replaced."""


@dataclass(frozen=True)
class _Layer:
    """One layer of an adapter, as PEFT is given it.

    Attributes:
        module: The adapter's part.
        tensors: Its tensors and the shared ones, by PEFT's keys.
        settings: Settings that replace the config's.
        empty: The inputs and outputs of an empty layer beside it, if there is one.
        by_side: Whether these are the shorter and the longer side, whichever is which.
    """

    module: AdaptedModule
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    empty: tuple[int, int] | None = None
    by_side: bool = False


def _reader(
    kind: str, *, bias: bool = False, check: Callable[[AdaptedModule], _Layer] | None = None
) -> Callable[..., Any]:
    """Return the reader of a method that PEFT merges.

    Args:
        kind: PEFT's ``peft_type``.
        bias: Whether the method changes the module's bias too.
        check: Returns the layer's tensors and settings where they differ from the file's.
    """

    def read(module: AdaptedModule) -> Iterator[Computed]:
        layer = (check or _as_stored)(module)
        tensors = tuple(layer.tensors.values())
        weight = f"{module.path}.weight"

        def misfit(parameter: Parameter) -> str | None:
            if len(parameter.shape) < _MATRIX:
                return f"the weight is {list(parameter.shape)}, a matrix was expected"
            _refuse_joint_bias(module, parameter)
            return None

        def transform(parameter: Parameter) -> Transform:
            return Transform(lambda rows, _: _merged(layer, parameter, rows), by_rows=False)

        yield Computed(weight, kind, tensors, misfit, transform, whole=True)
        if bias:
            yield Computed(
                f"{module.path}.bias",
                kind,
                tensors,
                lambda _: None,
                lambda parameter: Transform(
                    lambda rows, _: _merged_bias(layer, parameter, rows), by_rows=False
                ),
                optional=True,
                whole=True,
            )

    return read


def _as_stored(module: AdaptedModule) -> _Layer:
    own = {f"base_model.model.{module.path}.{name}": each for name, each in module.tensors.items()}
    shared = {f"base_model.{name}": each for name, each in module.shared.items()}
    return _Layer(module, {**shared, **own}, {})


def _with_saved_projection(module: AdaptedModule) -> _Layer:
    """Give RandLoRA and PVeRA an empty layer as large as the shared matrices of the file."""
    layer = _as_stored(module)
    shared = {name.rpartition("_")[2]: each.shape for name, each in module.shared.items()}
    if not {"A", "B"} <= shared.keys():
        msg = f"adapter {module.source!r} has save_projection: false"
        raise UnsupportedError(
            msg,
            hint="Its matrices are drawn for the largest layer. Save them: save_projection=True.",
        )
    sizes = (shared["A"][-1], shared["B"][0])
    by_side = any(name.startswith("randlora_") for name in module.shared)
    return _Layer(module, layer.tensors, {}, sizes, by_side=by_side)


def _with_saved_indices(module: AdaptedModule) -> _Layer:
    if not any("indices" in name for name in module.tensors):
        msg = f"adapter {module.source!r} has save_indices: false"
        raise UnsupportedError(
            msg,
            hint="Its indices follow the model's order of layers. Save them: save_indices=True.",
        )
    return _as_stored(module)


def _with_own_count(module: AdaptedModule) -> _Layer:
    """Give WaveFT the number of frequencies that the layer's spectrum has."""
    (spectrum,) = module.require("waveft_spectrum")
    settings = {"n_frequency": spectrum.shape[0], "n_frequency_pattern": {}}
    return _Layer(module, _as_stored(module).tensors, settings)


def _with_own_group(module: AdaptedModule) -> _Layer:
    """Give TinyLoRA the trained vector of the layer's group, which follows from its place."""
    module.require("tinylora_A", "tinylora_B", "tinylora_P")
    vectors = {n: each for n, each in module.shared.items() if n.startswith("tinylora_v")}
    layers = sorted(module.every, key=_natural)
    if len(vectors) > 1 and len({_NUMBERS.sub("*", path) for path in layers}) > 1:
        msg = (
            f"adapter {module.source!r} trains {len(vectors)} vectors for modules of several "
            "kinds: which belongs to which follows the model's order of modules"
        )
        raise UnsupportedError(msg, hint="Merge it with PEFT: merge_and_unload.")
    share = float(module.setting("weight_tying", 0.0))
    groups = max(1, round(len(layers) * (1.0 - share)))
    group = min(layers.index(module.path) // max(1, len(layers) // groups), groups - 1)
    own = vectors.get(f"tinylora_v.{group}")
    if own is None or len(vectors) != groups:
        raise module.error(
            f"{len(vectors)} vectors are stored, weight_tying: {share} makes {groups}"
        )
    kept = {n: each for n, each in _as_stored(module).tensors.items() if ".tinylora_v." not in n}
    return _Layer(module, {**kept, "base_model.tinylora_v.0": own}, {})


def _refuse_joint_bias(module: AdaptedModule, parameter: Parameter) -> None:
    """Refuse AdaMSS on a module with a bias, which it decomposes together with the weight.

    Raises:
        UnsupportedError: The module has one.
    """
    basis = module.tensors.get("adamss_newB")
    if basis is not None and basis.shape[-1] == parameter.shape[-1] + 1:
        msg = f"adapter {module.source!r} updates weight and bias of {module.path!r} as one"
        raise UnsupportedError(msg, hint="Merge it with PEFT: merge_and_unload.")


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _merged(layer: _Layer, parameter: Parameter, weight: Float32Array) -> Float32Array:
    """Return the weight that PEFT's merge gives."""
    held = _merged_layer(layer, parameter.module_type, weight, None)
    return np.ascontiguousarray(held.weight.detach().float().numpy())


def _merged_bias(layer: _Layer, _: Parameter, bias: Float32Array) -> Float32Array:
    """Return the bias that PEFT's merge gives; the weight beside it is empty."""
    held = _merged_layer(layer, "Linear", np.zeros((len(bias), 8), np.float32), bias)
    return np.ascontiguousarray(held.bias.detach().float().numpy())


def _merged_layer(
    layer: _Layer, module_type: str, weight: Float32Array, bias: Float32Array | None
) -> Any:
    """Return the layer that PEFT has merged the adapter into.

    Raises:
        MissingRuntimeError: torch or PEFT is not installed.
        AdapterError: PEFT cannot load the adapter into a layer of this shape.
    """
    _require_peft(layer.module.source)
    import peft
    from peft.utils import set_peft_model_state_dict

    path = layer.module.path
    known = layer.module.config
    settings = {name: value for name, value in _ONE_LAYER.items() if name in known}
    targets = [path, _EMPTY] if layer.empty else [path]
    inner = weight.shape if module_type == "Conv1D" else weight.shape[::-1]
    config = {**known, **settings, **layer.settings, "target_modules": targets}
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            root = _tree(path, _module(module_type, weight, bias), _empty_sizes(layer, inner))
            made = peft.PeftConfig.from_peft_type(**config)
            model = peft.get_peft_model(root, made).eval()
            tensors = {name: _to_torch(each) for name, each in layer.tensors.items()}
            found = set_peft_model_state_dict(model, tensors)
            target = model.base_model.model.get_submodule(path)
            _require_whole(layer, model, found)
            target.merge()
        except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
            msg = f"PEFT cannot merge module {path!r} of adapter {layer.module.source!r}"
            raise AdapterError(
                f"{msg}: {_said(error)}",
                hint="Config and tensors are not of the same adapter, or the base is another.",
            ) from error
    return target.get_base_layer()


def _empty_sizes(layer: _Layer, sizes: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the inputs and outputs of the empty layer beside one of `sizes`, ``(in, out)``."""
    if layer.empty is None or not layer.by_side or sizes[0] <= sizes[1]:
        return layer.empty
    shorter, longer = layer.empty
    return longer, shorter


def _said(error: Exception) -> str:
    """Return what PEFT or torch says: the first line that is more than a heading."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return first_line(Exception(others[0] if first.endswith(":") and others else first))


def _require_peft(source: str) -> None:
    missing = [name for name in ("torch", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"adapter {source!r} is merged by PEFT; not installed: {', '.join(missing)}"
        raise MissingRuntimeError(msg, hint=f"Install it {install_command('export')}.")


def _require_whole(layer: _Layer, model: Any, found: Any) -> None:
    """Require that PEFT took every tensor, and had values for all of its own."""
    if found.unexpected_keys:
        raise layer.module.error(f"PEFT has no use for {found.unexpected_keys[0]!r}")
    path = layer.module.path
    held = dict(model.named_parameters(remove_duplicate=False))
    lacking = set(found.missing_keys)
    loaded = {id(value) for name, value in held.items() if name not in lacking}
    own = [name for name in held if f".{path}." in f".{name}" and ".base_layer." not in name]
    missing = sorted(name for name in own if name in lacking and id(held[name]) not in loaded)
    if missing:
        name = missing[0].partition(f"{path}.")[2].replace(".default", "")
        raise layer.module.error(f"{name} is missing", "The file is damaged: copy it again.")


def _to_torch(tensor: Tensor) -> Any:
    import torch

    values = read_all(tensor)
    if not tensor.dtype.floating:
        return torch.from_numpy(values)
    from lora_export.adapters.delta import read_finite

    return torch.from_numpy(np.ascontiguousarray(read_finite(tensor)))


def _tree(path: str, layer: Any, empty: tuple[int, int] | None) -> Any:
    """Return a module that holds `layer` at `path`, and beside it an empty one if asked."""
    import torch

    root = torch.nn.Module()
    place = root
    *parents, leaf = path.split(".")
    for name in parents:
        child = torch.nn.Module()
        place.add_module(name, child)
        place = child
    place.add_module(leaf, layer)
    if empty is not None:
        root.add_module(_EMPTY, torch.nn.Linear(*empty, bias=False))
    return root


def _module(module_type: str, weight: Float32Array, bias: Float32Array | None) -> Any:
    """Return torch's module of a type, with this weight in it."""
    import torch

    values = torch.from_numpy(np.ascontiguousarray(weight))
    shape = weight.shape
    with torch.device("meta"):
        if module_type == "Embedding":
            made: Any = torch.nn.Embedding(*shape)
        elif module_type == "Conv1D":
            from transformers import Conv1D

            made = Conv1D(shape[1], shape[0])
            made.bias = None
        elif len(shape) == _MATRIX:
            made = torch.nn.Linear(shape[1], shape[0], bias=bias is not None)
        else:
            kind = getattr(torch.nn, f"Conv{len(shape) - _MATRIX}d")
            made = kind(shape[1], shape[0], shape[2:], bias=bias is not None)
    made.weight = torch.nn.Parameter(values, requires_grad=False)
    if bias is not None:
        made.bias = torch.nn.Parameter(torch.from_numpy(bias.copy()), requires_grad=False)
    return made


def _route(title: str, kind: str, prefix: str, **how: Any) -> Method:
    return Method(title, frozenset(), _reader(kind, **how), prefix=prefix)


ROUTES: Final[dict[str, Method]] = {
    "ADAMSS": _route("AdaMSS", "ADAMSS", "adamss_"),
    "C3A": _route("C3A", "C3A", "c3a_"),
    "DEFT": _route("DEFT", "DEFT", "deft_"),
    "DELORA": _route("DeLoRA", "DELORA", "delora_"),
    "GRALORA": _route("GraLoRA", "GRALORA", "gralora_"),
    "HIRA": _route("HiRA", "HIRA", "hira_"),
    "MISS": _route("MiSS and Bone", "MISS", "miss_"),
    "OSF": _route("OSF", "OSF", "osf_"),
    "PEANUT": _route("PEANuT", "PEANUT", "peanut_"),
    "PSOFT": _route("PSOFT", "PSOFT", "psoft_"),
    "PVERA": _route("PVeRA", "PVERA", "pvera_", check=_with_saved_projection),
    "RANDLORA": _route("RandLoRA", "RANDLORA", "randlora_", check=_with_saved_projection),
    "ROAD": _route("RoAd", "ROAD", "road_", bias=True),
    "SHIRA": _route("SHiRA", "SHIRA", "shira_"),
    "SUPERTUNING": _route("Supertuning", "SUPERTUNING", "supertuning_"),
    "TINYLORA": _route("TinyLoRA", "TINYLORA", "tinylora_", check=_with_own_group),
    "UNILORA": _route("UniLoRA", "UNILORA", "unilora_", check=_with_saved_indices),
    "VBLORA": _route("VB-LoRA", "VBLORA", "vblora_"),
    "WAVEFT": _route("WaveFT", "WAVEFT", "waveft_", check=_with_own_count),
}
"""The methods that PEFT merges, by ``peft_type``."""
