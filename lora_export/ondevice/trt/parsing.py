"""Graphs parsed by the installed library, with all that its parser refuses in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.api import Log, import_library
from lora_export.ondevice.trt.libraries import library_of, library_title

if TYPE_CHECKING:
    from pathlib import Path

    import tensorrt as trt

__all__ = [
    "Judgement",
    "Parsed",
    "Refusal",
    "judge_graph",
    "parse_graph",
    "start_builder",
]

_QUOTED: Final = re.compile(r'"([^"]+)"\s*\)?$')
_ASSERTION: Final = re.compile(r"^Assertion failed: .*?: (?=[A-Z])")
_NOISE: Final = ("Invalid Node - ", "[checkMacros")
_BARE: Final = frozenset({"", "false"})


@dataclass(frozen=True)
class Refusal:
    """One error of a parser.

    The nodes are first looked at one by one, and each that the parser does not import is an error.
    Where there is none, they are imported in their order, up to the first that fails.

    Attributes:
        at: The position of the node in the graph; -1 where the error is about no node.
        node: The node's name; empty where it has none.
        operator: Its operator.
        text: What is the matter, in the parser's words.
    """

    at: int
    node: str
    operator: str
    text: str


class Parsed(NamedTuple):
    """A network that was made of a graph.

    Attributes:
        network: The network; a part of one where there are refusals.
        parser: Its parser, which holds weights of the network: keep it until the engine is built.
        refusals: What the parser refused; the network can be built where this is empty.
    """

    network: trt.INetworkDefinition
    parser: trt.OnnxParser
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Judgement:
    """The errors of an installed parser for one graph.

    Attributes:
        library: The library that the parser belongs to.
        version: Its version.
        refusals: Its errors; empty where it reads the graph.
    """

    library: str
    version: str
    refusals: tuple[Refusal, ...]


def start_builder(log: Log) -> trt.Builder:
    """Return a builder of the library that `log` belongs to.

    Raises:
        DeviceError: It does not start, for example without a driver.
    """
    trt = log.module
    try:
        return trt.Builder(log.logger)
    except (RuntimeError, TypeError) as error:  # the binding's factory returned nothing
        msg = f"{library_title(library_of(trt))} does not start: {log.last_message()}"
        hint = "Does its version fit the driver's CUDA? See: lora-export doctor"
        raise DeviceError(msg, hint=hint, kind="missing") from error


def parse_graph(builder: trt.Builder, log: Log, model: bytes, path: Path) -> Parsed:
    """Return the strongly typed network of a graph, and what the parser refused.

    Args:
        builder: The builder that makes the network.
        log: Its log.
        model: The graph, as bytes.
        path: Where the graph lies: its weight files are found beside it.
    """
    trt = log.module
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse(model, str(path)):
        return Parsed(network, parser, ())
    errors = tuple(_refusal(parser.get_error(at)) for at in range(parser.num_errors))
    return Parsed(network, parser, errors or (Refusal(-1, "", "", log.last_message()),))


def judge_graph(library: str, model: bytes, path: Path) -> Judgement:
    """Parse a graph with an installed library, and return its errors; nothing is built.

    Args:
        library: The library, by its name in `libraries.LIBRARIES`.
        model: The graph, as bytes.
        path: Where the graph lies: its weight files are found beside it.

    Raises:
        DeviceError: The library is not installed, is not supported, or does not start.
    """
    log = Log(import_library(library))
    parsed = parse_graph(start_builder(log), log, model, path)
    return Judgement(library_of(log.module), str(log.module.__version__), parsed.refusals)


def _refusal(error: trt.ParserError) -> Refusal:
    return Refusal(error.node(), error.node_name(), error.node_operator(), _sentence(error.desc()))


def _sentence(text: str) -> str:
    """Return the sentence of an error, without the C++ expression that was not true.

    >>> _sentence('softcap == 0.0 && "Setting softcap is not supported in TensorRT Attention."')
    'Setting softcap is not supported in TensorRT Attention.'
    >>> _sentence("Assertion failed: cacheDims == 4: The past_cache tensor is required to be 4D.")
    'The past_cache tensor is required to be 4D.'
    >>> _sentence("false")
    'the parser does not import this operator'
    """
    lines = [line for line in text.splitlines() if not line.startswith(_NOISE)]
    said = " ".join(lines).strip()
    found = _QUOTED.search(said)
    if found is not None:
        return found[1]
    return "the parser does not import this operator" if said in _BARE else _ASSERTION.sub("", said)
