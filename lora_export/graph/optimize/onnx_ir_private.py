"""onnx_ir imported without sympy, which it needs for dimensions that are computed.

Importing sympy takes as long as all the rest of an export that needs no torch. onnx_ir reads two
modules where a dimension is an expression: sympy, and a private one that parses the text of one.
Both are imported when something of them is first used; of versions that have no such modules
nothing is put off.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

__all__ = ["put_off_sympy"]

_EXPRESSIONS: Final = "onnx_ir._symbolic_shapes"


def put_off_sympy() -> None:
    """Let the next import of onnx_ir import sympy no sooner than something of it is used.

    Without effect where either is imported already.
    """
    if "onnx_ir" in sys.modules or "sympy" in sys.modules:
        return
    package, sympy = find_spec("onnx_ir"), find_spec("sympy")
    if package is None or sympy is None:
        return
    expressions = PathFinder.find_spec(_EXPRESSIONS, package.submodule_search_locations)
    if expressions is not None:
        _import_when_used(sympy)
        _import_when_used(expressions)


def _import_when_used(spec: ModuleSpec) -> None:
    """Make a module known that is run when it is first asked for a name (PEP 562).

    `importlib.util.LazyLoader` runs one when it is imported again, which onnx_ir does.
    """
    module = module_from_spec(spec)

    def run_and_get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        del vars(module)["__getattr__"]
        assert spec.loader is not None  # noqa: S101  (it is a file's)
        spec.loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = run_and_get
    sys.modules[spec.name] = module
