"""Private and undocumented APIs of torch: every use that the project makes of one.

Read with the versions of `lora_export.core.supported_versions`; another version may need a change
here, and nowhere else. What only saves time (`exporter_passes`, `type_promotion`) is None under a
torch whose exporter is built differently; callers then do without.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from types import ModuleType

__all__ = [
    "DECOMPOSE",
    "INTERPRETER",
    "TORCH_TABLES",
    "FakeTensorMode",
    "checkpoint_offset",
    "copy_to_dtype",
    "disable_modes",
    "exporter_passes",
    "implemented_overloads",
    "is_mutable",
    "own_parameters",
    "promote_arguments",
    "replaced",
    "shape_environment",
    "source_frame",
    "symbol_of",
    "tree_map",
    "type_promotion",
]

TORCH_TABLES: Final = frozenset({"_parameters", "_buffers", "_modules"})
"""The attributes in which a module keeps its parameters, buffers and submodules."""

DECOMPOSE: Final = "decompose_with_registry"
"""The function of `exporter_passes` that traces a program again, with decompositions."""

INTERPRETER: Final = "_TypePromotionInterpreter"
"""The class of `type_promotion` that runs a program with its promotions made explicit."""

copy_to_dtype: Final = torch.ops.aten._to_copy.default  # noqa: SLF001  (no public name)
"""The operator of ``Tensor.to(dtype)`` that always copies."""

disable_modes: Final = _disable_current_modes
"""The context in which operators run at once, under no mode and outside of a trace."""


def own_parameters(module: torch.nn.Module) -> MutableMapping[str, torch.nn.Parameter | None]:
    """Return the table of the parameters of `module` itself; an entry may be replaced."""
    table: MutableMapping[str, torch.nn.Parameter | None] = module._parameters  # noqa: SLF001
    return table


def checkpoint_offset(value: torch.Tensor) -> int | None:
    """Return where the storage of a tensor begins in the file that it was read from, if known.

    ``torch.load`` under a fake-tensor mode leaves it at the storage.
    """
    offset: int | None = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    return offset


def shape_environment(size: torch.SymInt) -> Any:
    """Return the environment of a symbolic size: ``guards``, and ``replace`` for expressions."""
    return size.node.shape_env


def symbol_of(size: int | torch.SymInt) -> Any:
    """Return the sympy expression of a symbolic size; None of a number."""
    return size.node.expr if isinstance(size, torch.SymInt) else None


def source_frame(guard: Any) -> Any:
    """Return where the model's code made a guard, ``filename`` and ``lineno``, if it is known."""
    frame = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    return None if isinstance(frame, str) else frame


def is_mutable(operator: Any) -> bool:
    """Return whether an operator of a traced program writes to its inputs."""
    schema = getattr(operator, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def exporter_passes() -> ModuleType | None:
    """Return the exporter's module that holds `DECOMPOSE` and ``remove_assertion_nodes``."""
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes
    except ImportError:
        return None
    known = (
        hasattr(_fx_passes, DECOMPOSE)
        and hasattr(_fx_passes, "remove_assertion_nodes")
        and hasattr(_decomp, "get_onnx_implemented_overloads")
    )
    return _fx_passes if known else None


def implemented_overloads(registry: Any) -> set[Any]:
    """Return the operators that the exporter translates as they are; see `exporter_passes`."""
    from torch.onnx._internal.exporter import _decomp

    return set(_decomp.get_onnx_implemented_overloads(registry))


def type_promotion() -> ModuleType | None:
    """Return the exporter's module of type promotion, which holds `INTERPRETER`."""
    try:
        from torch.onnx._internal.fx.passes import type_promotion as module
    except ImportError:
        return None
    known = hasattr(module, INTERPRETER) and hasattr(module, "get_type_promotion_rule")
    return module if known else None


def promote_arguments(module: Any, interpreter: Any, node: torch.fx.Node) -> None:
    """Promote the arguments of `node` where its rule says so; mutates it.

    Args:
        module: What `type_promotion` returned.
        interpreter: An instance of its `INTERPRETER`.
        node: A call of a function.
    """
    with interpreter._set_current_node(node):  # noqa: SLF001
        rule = module.get_type_promotion_rule(node, interpreter.type_promotion_table)
        if rule:
            interpreter._maybe_promote_node(node, rule)  # noqa: SLF001


@contextlib.contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Put `value` in the place of an attribute of `holder`, until the block ends."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)
