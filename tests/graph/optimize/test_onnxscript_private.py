"""The domain of onnxscript's functions, read without parsing them."""

from __future__ import annotations

from onnxscript._framework_apis.torch_2_5 import get_torchlib_ops
from onnxscript._internal.values import TracedOnnxFunction

from lora_export.graph.optimize.onnxscript_private import domain_unparsed, domains_unparsed


def test_domain_is_that_of_the_parsed_function() -> None:
    parsed = TracedOnnxFunction.function_ir
    functions = [
        each for each in get_torchlib_ops() if isinstance(each.function, TracedOnnxFunction)
    ]
    assert len(functions) > 300
    assert {each.domain for each in functions} == {
        domain_unparsed(each.function).domain for each in functions
    }
    with domains_unparsed():
        assert TracedOnnxFunction.function_ir is not parsed
        assert functions[0].function.function_ir.domain == functions[0].domain
    assert TracedOnnxFunction.function_ir is parsed
