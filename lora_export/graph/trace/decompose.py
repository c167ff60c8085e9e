"""Decomposition of a traced program, only where the exporter needs it.

The exporter always decomposes, which traces the whole model a second time; for a transformer in
eval mode that is the longest stage of an export, and changes almost nothing. A program is left as
it is if every operator in it has a translation and none writes to its inputs, after these rewrites:

    1. ``aten.to.*``            →  ``aten._to_copy`` where the dtype changes, else its input
    2. ``aten.detach``          →  its input
    3. ``aten.__and__/__or__``  →  ``aten.bitwise_and/or``; ``aten.min.other`` → ``aten.minimum``

Anything else takes the exporter's own way, and so does everything under a torch whose exporter is
built differently: this reaches into internals.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_export.core.torch_private import (
    DECOMPOSE,
    copy_to_dtype,
    exporter_passes,
    implemented_overloads,
    is_mutable,
    replaced,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram

__all__ = ["only_needed_decompositions"]

aten = torch.ops.aten

_CONVERSIONS: Final = frozenset(
    {aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.to.prim_Device, aten.to.other}
)
_IDENTITIES: Final = frozenset({aten.detach.default, aten.detach_.default, aten.alias.default})
_RENAMED: Final = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.min.other: aten.minimum.default,
}


@contextlib.contextmanager
def only_needed_decompositions() -> Iterator[None]:
    """Let the exporter decompose only the programs that need it, until the block ends."""
    passes: Any = exporter_passes()
    if passes is None:
        yield
        return
    always = getattr(passes, DECOMPOSE)

    def decompose(exported_program: ExportedProgram, registry: Any) -> ExportedProgram:
        module = exported_program.graph_module
        if not _can_stay(module, implemented_overloads(registry)):
            decomposed: ExportedProgram = always(exported_program, registry)
            return decomposed
        passes.remove_assertion_nodes(module)
        _rewrite(module)
        return exported_program

    with replaced(passes, DECOMPOSE, decompose):
        yield


def _can_stay(module: torch.fx.GraphModule, supported: set[Any]) -> bool:
    """Whether every operator is translated or rewritten, and none writes to its inputs."""
    rewritten = _CONVERSIONS | _IDENTITIES | set(_RENAMED)
    for node in module.graph.nodes:
        if node.op in {"placeholder", "output"} or node.target in rewritten:
            continue
        if node.op != "call_function":
            return False  # a submodule: control flow
        if "_assert" in str(node.target) or "sym_constrain" in str(node.target):
            continue
        if node.target not in supported or is_mutable(node.target):
            return False
    return True


def _rewrite(module: torch.fx.GraphModule) -> None:
    """Apply the rewrites above; mutates `module`."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _RENAMED:
            node.target = _RENAMED[node.target]
        elif node.target in _IDENTITIES or node.target in _CONVERSIONS:
            source = node.args[0]
            before, after = source.meta["val"].dtype, node.meta["val"].dtype
            returned = any(user.op == "output" for user in node.users)  # the signature names it
            if before == after and not returned:
                node.replace_all_uses_with(source)
                module.graph.erase_node(node)
            else:
                node.target = copy_to_dtype
                node.args, node.kwargs = (source,), {"dtype": after}
    module.recompile()
