"""The sections of a recipe: one model for each, with its defaults."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_export.core.modes import ServingMode
from lora_export.core.quantization import MethodName, SchemeName
from lora_export.ondevice.bundle.index_limits import MOST_ROUNDS
from lora_export.triton.repository_options import Backend, RepositoryOptions

__all__ = [
    "SECTION_CONFIG",
    "BundleSpec",
    "CombineSpec",
    "LatencySpec",
    "Metric",
    "QuantizeSpec",
    "Seed",
    "TritonSpec",
    "VerifySpec",
    "as_section",
]

Metric = Literal[
    "accuracy",
    "bleu",
    "exact_match",
    "f1",
    "matthews",
    "pearson",
    "perplexity",
    "rouge",
]


Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


SECTION_CONFIG: Final = ConfigDict(extra="forbid", frozen=True, defer_build=True)
"""An unknown key is an error."""


class _Section(BaseModel):
    model_config = SECTION_CONFIG


class CombineSpec(_Section):
    """All adapters become one graph; see `lora_export.adapters.combine`.

    Attributes:
        method: ``linear``, ``cat``, ``svd``, ``ties``, ``dare_linear``, ``dare_ties``,
            ``magnitude_prune``, or one of the last four with ``_svd``.
        weights: One factor per adapter, in their order; 1 for each by default.
        density: The share of entries that pruning methods keep.
        rank: The rank of the result, for ``svd`` methods.
        name: What the result is called; the adapters' names, joined by ``-``, by default.
        majority_sign_method: How TIES elects signs.
        seed: Seeds DARE.
        head_from: The adapter whose head, labels and tokenizer the result has; without it, all
            adapters that bring one have to agree.
    """

    method: str
    weights: list[float] | None = None
    density: float | None = None
    rank: int | None = Field(default=None, lt=1 << 31)
    name: str | None = None
    majority_sign_method: Literal["total", "frequency"] = "total"
    seed: Seed = 0
    head_from: str | None = None


class VerifySpec(_Section):
    """The settings of the verification.

    Attributes:
        enabled: Whether to verify at all.
        dataset: A JSONL file of examples, asked of the reference and of the exported graph.
        metric: How they are scored; by default as the task usually is.
        max_new_tokens: The most tokens of a text that is written for them.
        seed: Seeds the generated inputs.
        allow_no_effect: Accept an adapter that changes nothing measurable.
        min_gain: The smallest share of an adapter's effect that a quantized graph may keep.
        max_loss: The largest relative L2 error of its outputs; by default any.
        max_metric_drop: The most that its score on the data set may lose; by default anything.
    """

    enabled: bool = True
    dataset: str | None = None
    metric: Metric | None = None
    max_new_tokens: int = Field(default=64, ge=1, lt=1 << 31)
    seed: Seed = 0
    allow_no_effect: bool = False
    min_gain: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    max_loss: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_metric_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class LatencySpec(_Section):
    """The settings of the latency measurement and its gate.

    Attributes:
        enabled: Whether to measure at all. By default merged graphs are measured, whose latency is
            the base's; swappable and batched ones, which cost something, where this or
            `max_ratio` is given.
        max_ratio: The largest allowed ratio to the base's latency.
        batch: Batch size of the measured input.
        length: Sequence length of the measured input.
        rounds: Interleaved rounds.
    """

    enabled: bool = True
    max_ratio: float = Field(default=1.05, gt=0, allow_inf_nan=False)
    batch: int = Field(default=1, ge=1, le=1 << 16)
    length: int = Field(default=128, ge=1, le=1 << 24)
    rounds: int = Field(default=120, ge=10, le=MOST_ROUNDS)


class QuantizeSpec(_Section):
    """The quantization of weights to integers of four or eight bits.

    Attributes:
        weights: ``int4`` or ``int8``: the weights of products. ``nf4`` and ``fp4``, in the form
            ``ort`` alone: four-bit floats, carried over from a base that is stored so.
        block_size: How many inputs share a scale; 32 for int4, 64 for nf4 and fp4. For int8 256,
            or ``all`` (one for each output) where not every version of the target's TensorRT reads
            blocks.
        method: How integers and scales are found: ``search``; ``nearest``, which is plainer;
            ``signed``, which loses less in int4 and which TensorRT does not read; or ``gptq``,
            which loses least, and runs the model on sentences.
        keep: Patterns of parameters or modules that stay as they are, whole names or their ends.
        embeddings: ``int8``, one scale per row, or ``keep``.
        head: The scheme of the layer that gives the logits of tokens, or ``keep``; that of the
            weights by default. One that is tied to the embeddings is int8 or kept.
    """

    weights: SchemeName
    block_size: Literal[16, 32, 64, 128, 256, "all"] | None = None
    method: MethodName = "search"
    keep: list[str] = []
    embeddings: Literal["int8", "keep"] = "int8"
    head: Literal["int4", "int8", "keep"] | None = None


def as_section(value: object) -> object:
    """Return ``quantize: int4`` as the section that it is short for."""
    return {"weights": value} if isinstance(value, str) else value


class BundleSpec(_Section):
    """The bundle for the target.

    Attributes:
        enabled: Whether there is one; by default where the target is a device that the bundle is
            carried to, and the export is verified.
        file: Where it goes; beside the export, with the target's name, by default.
        refit: Whether adapters are put into the base's engine instead of one of their own.
        allow_failed: Whether a graph that failed its verification may go.
    """

    enabled: bool | None = None
    file: str | None = None
    refit: bool = False
    allow_failed: bool = False


class TritonSpec(RepositoryOptions):
    """A model repository for the Triton server: which models, beside their settings.

    Attributes:
        repository: Where it is written when everything else is done.
        name: What its models' names begin with; the export directory by default.
        backend: ``onnxruntime``, ``python`` or ``tensorrt``; what fits the export by default.
        way: How a model of the Python backend runs an adapter.
        adapters: Those that are served; all by default.
        text: Whether there is an ensemble that takes texts.
        hardlink: Whether files of the export are hard-linked instead of copied.
    """

    repository: str | None = None
    name: str | None = None
    backend: Backend | None = None
    way: ServingMode | None = None
    adapters: tuple[str, ...] = ()
    text: bool = False
    hardlink: bool = False
