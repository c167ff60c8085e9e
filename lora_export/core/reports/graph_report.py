"""``reports/graph.json``: how the weights of a user's own graph were matched to the base.

GraphReport
├── producer, ir_version, opset         of the file
├── by_name, by_content                 initializers that were matched
├── transposed, cast                    those of them that the graph stores differently
├── renamed, shared                     names in the graph and in the checkpoint
├── ambiguous, unmatched                initializers that were not
└── brought_by_adapters, not_in_graph   parameters without an initializer or a tensor
"""

from __future__ import annotations

from lora_export.core.reports.report_model import ReportModel

__all__ = ["AmbiguousInitializer", "GraphReport", "InitializerRow"]


class InitializerRow(ReportModel):
    """An initializer of the graph.

    Attributes:
        initializer: Its name.
        dtype: Its dtype.
        shape: Its shape.
    """

    initializer: str
    dtype: str
    shape: list[int]


class AmbiguousInitializer(InitializerRow):
    """An initializer with the values of several tensors of the base.

    Attributes:
        equal_to: The names of these tensors.
    """

    equal_to: list[str]


class GraphReport(ReportModel):
    """The whole document.

    Attributes:
        producer: The program that wrote the file, and its version.
        ir_version: The version of ONNX's representation.
        opset: The version of ONNX's operators.
        by_name: Initializers that were matched by their name.
        by_content: Initializers that were matched by their values.
        transposed: Matched initializers that are stored transposed.
        cast: Matched initializers that are stored in another dtype.
        renamed: The checkpoint's name of each initializer that has another.
        shared: The initializer's other parameters, by its own.
        ambiguous: Initializers with the values of several tensors.
        unmatched: Large initializers that no tensor has the values of.
        brought_by_adapters: Parameters that the base does not have.
        not_in_graph: Tensors of the base that the graph does not hold.
    """

    producer: str
    ir_version: int
    opset: int
    by_name: int
    by_content: int
    transposed: int
    cast: int
    renamed: dict[str, str]
    shared: dict[str, list[str]]
    ambiguous: list[AmbiguousInitializer]
    unmatched: list[InitializerRow]
    brought_by_adapters: list[str]
    not_in_graph: list[str]
