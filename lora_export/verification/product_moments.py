"""Second moments of what a graph's products are given, for methods that round by them.

    640 sentences → tokens → the base's graph, which returns the inputs x of its products → Σ xᵀ x

The sentences are in the package (``data/sentences.txt``), so that nobody needs data. As many
products as memory allows are measured in one pass over them; a pass stops behind the last of these.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import by_name, to_float32
from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.exports.adapter_companions import companions_of
from lora_export.exports.base_config import read_base_config
from lora_export.graph.quantize.product_inputs import product_inputs, with_outputs
from lora_export.graph.spec import tasks
from lora_export.graph.spec.onnx_file import read_onnx
from lora_export.ondevice.ort.ort_session import OrtSession
from lora_export.runtime.ort import require_onnxruntime
from lora_export.runtime.tokens import (
    TOKENIZER_FILE,
    open_tokenizer,
    padding_token,
    read_settings,
)
from lora_export.verification.datasets.kind import Reading
from lora_export.verification.inputs.feeding import feeding_of, fixed_axes
from lora_export.verification.inputs.random_inputs import longest_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.core.manifest import Manifest
    from lora_export.core.progress import Progress
    from lora_export.graph.quantize.product_inputs import ProductInput

    Array = npt.NDArray[Any]
    Feeds = Mapping[str, Array]

__all__ = ["measure_moments", "require_text_inputs"]

_SENTENCES: Final = "sentences.txt"
_LIMIT_BYTES: Final = 1 << 30
"""The memory that the moments of one pass may take."""
_BATCH: Final = 16
_LONGEST: Final = 128
_TOGETHER: Final = 6
"""Sentences of one text for a decoder, which goes on from what it has read."""
_HINT: Final = "Choose another method, such as search, which needs nothing but the weights."


def require_text_inputs(input_names: Collection[str], *, graphs: int) -> None:
    """Require that a model can be given sentences.

    Args:
        input_names: The inputs of its graph.
        graphs: How many graphs it has.

    Raises:
        UnsupportedError: It is an encoder and a decoder, or takes no text.
    """
    if graphs > 1:
        msg = "method 'gptq' runs one graph on sentences, and an encoder and a decoder are two"
        raise UnsupportedError(msg, hint=_HINT)
    if "input_ids" not in input_names:
        msg = f"method 'gptq' runs the graph on sentences, and it takes {', '.join(input_names)}"
        raise UnsupportedError(msg, hint=_HINT)


def measure_moments(
    export_dir: Path, manifest: Manifest, parameters: Collection[str], *, progress: Progress
) -> Callable[[str], Float32Array | None]:
    """Return a function that returns Σ xᵀ x, ``[K, K]``, of what a parameter is multiplied with.

    It measures when it is asked, and keeps what one pass gave: ask in the order of names.

    Args:
        export_dir: The export, whose base graph is run.
        manifest: Its manifest.
        parameters: The parameters that it will be asked for; None is returned for others.
        progress: Told that measuring begins.

    Raises:
        UnsupportedError: The graph does not take text alone.
        MissingRuntimeError: ONNX Runtime or ``tokenizers`` is not installed.
        InputError: The tokenizer is missing or damaged.
    """
    require_onnxruntime()
    path = resolve_inside(export_dir, manifest.base_graph.onnx)
    graphs = len(manifest.base_graph.graph_files)
    require_text_inputs(feeding_of(export_dir, manifest.base_graph).signature.input_names,
                        graphs=graphs)  # fmt: skip
    model, feeds = read_onnx(path), _feeds(export_dir, manifest)
    found = product_inputs(model.graph, parameters)
    widths = {found[name].value: found[name].width for name in sorted(found)}
    held: dict[str, Float32Array] = {}

    def moments_of(name: str) -> Float32Array | None:
        own = found.get(name)
        if own is None:
            return None
        if own.value not in held:
            held.clear()
            progress.start("measuring the inputs of products")
            group = _group(widths, own)
            graph = with_outputs(model, list(group), by_name(manifest.base.dtype).onnx)
            held.update(_pass(path, graph, feeds, group))
        return held[own.value]

    return moments_of


def _feeds(export_dir: Path, manifest: Manifest) -> list[Feeds]:
    """Return the graph's inputs for the sentences of the package."""
    lines = resources.files("lora_export.verification").joinpath("data", _SENTENCES)
    sentences = lines.read_text(encoding="utf-8").splitlines()
    causal = tasks.by_name(manifest.base.task).causal
    step = _TOGETHER if causal else 1
    texts = [" ".join(sentences[at : at + step]) for at in range(0, len(sentences), step)]
    signature = feeding_of(export_dir, manifest.base_graph).signature
    config, files = read_base_config(export_dir), companions_of(export_dir, manifest, None)
    rows, tokens, room = fixed_axes(signature)
    if TOKENIZER_FILE not in files:
        msg = f"method 'gptq' runs the graph on sentences, and the base has no {TOKENIZER_FILE}"
        raise InputError(msg, hint=_HINT)
    tokenizer = open_tokenizer(files)
    longest = min(each for each in (longest_text(config), room, tokens, _LONGEST) if each)
    tokenizer.cut_to(longest)
    reading = Reading(
        export_dir, tokenizer, (), signature, padding=padding_token(config), longest=longest,
        left=causal, settings=read_settings(files), max_new_tokens=1, rows=rows, tokens=tokens,
    )  # fmt: skip
    encodings = [each for each in reading.encode(texts) if each.ids]
    return list(reading.batches(sorted(encodings, key=lambda each: len(each.ids)), _BATCH))


def _group(widths: Mapping[str, int], first: ProductInput) -> dict[str, int]:
    """Return the values that one pass measures: from one on, as many as memory allows."""
    names = list(widths)
    group: dict[str, int] = {}
    taken = 0
    for name in names[names.index(first.value) :]:
        taken += widths[name] ** 2 * np.dtype(np.float32).itemsize
        if group and taken > _LIMIT_BYTES:
            break
        group[name] = widths[name]
    return group


def _pass(
    path: Path, graph: bytes, feeds: Sequence[Feeds], group: Mapping[str, int]
) -> dict[str, Float32Array]:
    """Return Σ xᵀ x of some values, which a graph returns, over all inputs."""
    session = OrtSession(path, graph=graph, exact=True)
    sums = {name: np.zeros((width, width), np.float32) for name, width in group.items()}
    try:
        for each in feeds:
            for name, values in session.run(each).items():
                rows = _counted(values, each.get("attention_mask"))
                with np.errstate(over="ignore", invalid="ignore"):  # refused where it is used
                    sums[name] += rows.T @ rows
    finally:
        session.close()
    return sums


def _counted(values: Array, mask: Array | None) -> Float32Array:
    """Return the rows of values, ``[rows, K]``, those of padding left out."""
    if mask is not None and mask.shape == values.shape[:2]:
        values = values[mask.astype(bool)]
    return np.ascontiguousarray(to_float32(values.reshape(-1, values.shape[-1])))
