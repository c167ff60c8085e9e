"""The canonical adapter: the value that every format is read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.tensors import count_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from lora_export.adapters.known_base import KnownBase
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = [
    "INPUT_FIRST_EXPERTS",
    "Adapter",
    "Added",
    "Computed",
    "Item",
    "LowRank",
    "Rows",
    "Saved",
    "Transform",
]

INPUT_FIRST_EXPERTS: Final[dict[str, str]] = {
    "aria": "AriaExperts",
    "aria_text": "AriaExperts",
    "gpt_oss": "GptOssExperts",
    "openai_privacy_filter": "OpenAIPrivacyFilterExperts",
}
"""Classes of transformers that hold their experts as ``[experts, in, out]``, by ``model_type``."""


@dataclass(frozen=True)
class LowRank:
    """A low-rank update ``s·B A`` of one module's weight (LoRA, arXiv 2106.09685, section 4.1).

    With a magnitude m it is DoRA (arXiv 2402.09353, section 4.1): the rows of ``W0 + s·B A``, one
    per output, are scaled to the length m.

    Attributes:
        module: The module's path in the adapter's model, without wrappers (``…self.query``).
        a: ``[r, in]``; for an embedding ``[r, vocabulary]``, for a convolution ``[r, in, …]``.
        b: ``[out, r]``; for an embedding ``[width, r]``, for a convolution ``[out, r, …]``.
        scale: s, already resolved: ``alpha / r`` or ``alpha / sqrt(r)``, patterns applied.
        embedding: Whether the module is an embedding, whose weight is ``[vocabulary, width]``.
        magnitude: m, one number per output (any shape of that many elements); None without DoRA.
        name: The parameter's own name, where the adapter names it instead of the module (PEFT's
            ``target_parameters``): B A then has the rows and columns that the parameter has,
            whatever its module is.
        experts: E, how many matrices the parameter stacks: A is ``[E·r, in]`` and B ``[out, r·E]``,
            expert by expert in A's rows and rank by rank in B's columns.
        flat: Whether both are matrices even where the module is a convolution.
    """

    module: str
    a: Tensor
    b: Tensor
    scale: float
    embedding: bool = False
    magnitude: Tensor | None = None
    name: str | None = None
    experts: int = 1
    flat: bool = False

    @property
    def rank(self) -> int:
        """r, the number of rows of A (of one expert)."""
        return self.a.shape[0] // self.experts

    @property
    def parameter(self) -> str:
        """The path of the weight that it updates."""
        return f"{self.module}.{self.name or 'weight'}"

    def input_first(self, parameter: Parameter) -> bool:
        """Whether `parameter` lies as ``(B A)ᵀ``: a row (of each expert) is an input.

        Of stacked experts the shape tells; where they are square, the class of their module.
        """
        if self.name is None:
            return self.embedding or parameter.module_type == "Conv1D"
        if self.experts == 1:
            return False
        matrix, outputs = parameter.shape[1:], self.b.shape[0]
        if len(set(matrix)) == 1:
            return parameter.module_type in INPUT_FIRST_EXPERTS.values()
        return matrix == (*self.a.shape[1:], outputs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return (self.a, self.b) if self.magnitude is None else (self.a, self.b, self.magnitude)


@dataclass(frozen=True)
class Saved:
    """A parameter that the adapter carries whole: a head, a trained bias.

    Attributes:
        parameter: The parameter's path in the adapter's model.
        tensor: Its value.
        in_place: Whether it is loaded into the base's own parameter, which other modules may share
            (tied weights), rather than into a copy of the module (``modules_to_save``).
    """

    parameter: str
    tensor: Tensor
    in_place: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return (self.tensor,)


@dataclass(frozen=True)
class Added:
    """A value that is added to a parameter: ``b = b0 + s·tensor`` (the bias of a LoRA's B).

    Attributes:
        parameter: The parameter's path in the adapter's model.
        tensor: What is added, in the parameter's shape.
        scale: s.
    """

    parameter: str
    tensor: Tensor
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return (self.tensor,)


@dataclass(frozen=True)
class Rows:
    """Rows of a parameter that the adapter replaces: trained tokens of an embedding.

    Attributes:
        parameter: The parameter's path in the adapter's model.
        indices: Which rows, ascending.
        tensor: Their values, ``[len(indices), …]``.
    """

    parameter: str
    indices: tuple[int, ...]
    tensor: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return (self.tensor,)


@dataclass(frozen=True)
class Transform:
    """New values of a weight from those of the base: ``W = f(W0)``, in float32.

    Attributes:
        apply: Takes rows of W0 as the checkpoint stores them, and the index of the first one;
            returns the new rows, and leaves the old ones as they are.
        by_rows: Whether any block of rows is computed from the block alone. Else `apply` is called
            once, with the whole weight.
    """

    apply: Callable[[Float32Array, int], Float32Array]
    by_rows: bool = True


@dataclass(frozen=True)
class Computed:
    """A parameter that a method other than LoRA computes from the base's value.

    What the method is to a weight of a given shape is known only once the base is: its functions
    take the parameter.

    Attributes:
        parameter: The parameter's path in the adapter's model.
        method: PEFT's ``peft_type`` (``LOHA``).
        tensors: The tensors that it is made of.
        misfit: Returns how the tensors fail to fit a parameter, or None; raises UnsupportedError
            for a module on which the method has no merge.
        transform: Reads the tensors; returns the new value as a function of the old one.
        product: Where the update is a product, returns it as one. Takes the parameter, and those of
            all modules that the method changes.
        outputs: The number of outputs that the tensors have; None where they do not tell.
        inputs: The same of inputs.
        embedding: Whether the module is an embedding.
        optional: Whether a base without the parameter has no use for it (a bias).
        whole: Whether rows of the weight cannot be computed apart from each other.
    """

    parameter: str
    method: str
    tensors: tuple[Tensor, ...]
    misfit: Callable[[Parameter], str | None] = field(repr=False, compare=False)
    transform: Callable[[Parameter], Transform] = field(repr=False, compare=False)
    product: Callable[[Parameter, Sequence[Parameter]], LowRank] | None = field(
        default=None, repr=False, compare=False
    )
    outputs: int | None = None
    inputs: int | None = None
    embedding: bool = False
    optional: bool = False
    whole: bool = False


Item: TypeAlias = "LowRank | Saved | Added | Rows | Computed"
"""One thing that an adapter does to one parameter."""


@dataclass(frozen=True)
class Approximation:
    """An adapter of another method, held as LoRA.

    Attributes:
        method: The method.
        rank: The largest rank of an update.
        losses: ‖ΔW − B A‖ / ‖ΔW‖ of each weight, by its name in the adapter.
    """

    method: str
    rank: int
    losses: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class Adapter:
    """One adapter, every tensor of its file accounted for.

    Attributes:
        name: The name it goes by in an export.
        source: Where it came from, as the user wrote it.
        folder: Where its files are.
        format: The format it was read from (``peft``).
        low_rank: Its low-rank updates.
        saved: The parameters it carries whole.
        task_type: PEFT's ``task_type``, where the format records it.
        base_name: The base that it names, where the format records it.
        sha256: Hash over the files it was read from.
        config: The format's own settings, for reports.
        added: What it adds to parameters that are not matrices.
        rows: The rows that it replaces.
        computed: The parameters that a method other than LoRA computes.
        method: PEFT's ``peft_type``.
        repeated: Keys that say nothing of their own: a second copy of a tensor (checked to be
            equal), or the base's own head, kept for running without the adapter.
        factor: What the user multiplied its scale by; contained in the updates' scales.
        alpha: The alpha that the user said, where its format records none.
        enable_lora: The blocks of a ``MergedLinear`` that the user said.
        known_base: The base that it was made for, where its file records that.
        residual: The initialisation (``pissa``) that took its first update off its base: it is
            merged into that residual base only, see ``weights/residual.py``.
        renamed: Whether it goes by other names than its file has: without wrappers, or the
            model's where the file has the hub's.
        notes: What the user should know of it; recorded with it.
        complete: Whether it has to have every parameter of the base (a fine-tuned checkpoint).
    """

    name: str
    source: str
    folder: Path
    format: str
    low_rank: tuple[LowRank, ...]
    saved: tuple[Saved, ...]
    task_type: str | None
    base_name: str | None
    sha256: str
    config: Mapping[str, Any] = field(repr=False)
    added: tuple[Added, ...] = ()
    rows: tuple[Rows, ...] = ()
    computed: tuple[Computed, ...] = ()
    method: str = "LORA"
    repeated: tuple[str, ...] = ()
    factor: float = 1.0
    alpha: float | None = None
    enable_lora: tuple[bool, ...] | None = None
    known_base: KnownBase | None = None
    residual: str | None = None
    renamed: bool = False
    notes: tuple[str, ...] = ()
    complete: bool = False
    approximation: Approximation | None = None

    @property
    def max_rank(self) -> int:
        """The largest rank among its updates; 0 without any."""
        return max((update.rank for update in self.low_rank), default=0)

    @property
    def tensor_count(self) -> int:
        """The number of tensors in its file."""
        return count_stored(self.tensors) + len(self.repeated)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that says something."""
        return tuple(tensor for item in self.items for tensor in item.tensors)

    @property
    def items(self) -> tuple[Item, ...]:
        """Everything that it does."""
        return (*self.low_rank, *self.saved, *self.added, *self.rows, *self.computed)
