"""sympy is imported when a dimension is computed, and no sooner."""

from __future__ import annotations

from tests.cli.running import python

CODE = """
import sys
from lora_export.graph.optimize.onnx_ir_private import put_off_sympy

put_off_sympy()
import onnx_ir as ir

model = ir.from_proto(__import__("onnx").helper.make_model(
    __import__("onnx").helper.make_graph([], "g", [], [])))
assert not [name for name in sys.modules if name.startswith("sympy.")]
size = ir.SymbolicDim("batch") + 3
print(size, ir.SymbolicDim("2*n - n").simplify(), "sympy.core" in sys.modules)

import sympy

print(sympy.Max(2, 3), sympy.sympify("x + x"))
"""


def test_sympy_is_imported_when_a_dimension_is_computed() -> None:
    done = python("-c", CODE)
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["batch + 3 n True", "3 2*x"]


def test_what_is_imported_already_stays() -> None:
    code = "import sympy\n" + CODE.partition("import onnx_ir")[0] + "print(sympy.Max(2, 3))"
    assert python("-c", code).out == "3\n"
