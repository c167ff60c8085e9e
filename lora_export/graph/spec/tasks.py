"""Tasks: the model class, the inputs and outputs, and the head of each.

Task names are those of ``transformers.pipeline``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["OTHER_NAMES", "TASKS", "Task", "by_name", "detect"]


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        name: The pipeline name.
        auto_class: The class in ``transformers`` that builds the model from its config.
        suffixes: Endings of a config's ``architectures`` that mean this task.
        peft_type: ``task_type`` in a PEFT config that means this task.
        output: The field of the model's output that the graph returns.
        output_axes: Names of that output's axes; a number stands for an axis fixed by the config.
        further: Fields of the same shape that are returned too; one comparison covers them all.
        label_parameters: Head parameters whose first axis is the number of labels.
        inputs: What the graph always reads; `lora_export.graph.spec.signature` adds the optional
            ones.
        causal: Whether positions are an input, so that left padding is correct.
        encoder_decoder: Whether an encoder and a decoder are a graph each; `inputs` are the
            encoder's then, and the output the decoder's.
        pooled: Whether the output is the sentence's, pooled as `modules.json` says.
        tower: The submodule that serves the task in a model that has one for images and one for
            texts (CLIP).
    """

    name: str
    auto_class: str
    suffixes: tuple[str, ...]
    peft_type: str | None
    output: str
    output_axes: tuple[str, ...]
    label_parameters: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    further: tuple[str, ...] = ()
    causal: bool = False
    encoder_decoder: bool = False
    pooled: bool = False
    tower: str = ""

    def part_of(self, model: Any) -> Any:
        """Return the module of `model` that serves the task: one of its two towers, or itself."""
        towers = {row.tower for row in TASKS.values() if row.tower}
        whole = not self.tower or any(not hasattr(model, name) for name in towers)
        return model if whole else getattr(model, self.tower)

    @property
    def outputs(self) -> tuple[str, ...]:
        """All fields of the model's output that the graph returns."""
        return (self.output, *self.further)

    def result(self, fields: Mapping[str, Array]) -> Array:
        """Return one array of all outputs: several ones are stacked on a last axis."""
        from lora_export.ondevice.judge.golden_checks import stack_outputs

        return stack_outputs(fields, self.outputs)

    @property
    def per_token(self) -> bool:
        """Whether the output has a row for each token."""
        return "sequence" in self.output_axes

    @property
    def features(self) -> bool:
        """Whether the bare model is read: an adapter that was trained under any head fits it."""
        return self.peft_type == "FEATURE_EXTRACTION"

    @property
    def classifies(self) -> bool:
        """Whether the last axis of the output is a choice, so that its top-1 means something."""
        return self.output == "logits"

    @property
    def scores_tokens(self) -> bool:
        """Whether the last axis of the output has an entry for each token of the vocabulary."""
        return self.classifies and not self.label_parameters


_LABELS: Final = ("classifier.out_proj.weight", "classifier.weight", "score.weight")

TASKS: Final[dict[str, Task]] = {
    row.name: row
    for row in (
        Task(
            "text-classification",
            "AutoModelForSequenceClassification",
            ("ForSequenceClassification",),
            "SEQ_CLS",
            "logits",
            ("batch",),
            _LABELS,
        ),
        Task(
            "token-classification",
            "AutoModelForTokenClassification",
            ("ForTokenClassification",),
            "TOKEN_CLS",
            "logits",
            ("batch", "sequence"),
            _LABELS,
        ),
        Task(
            "fill-mask",
            "AutoModelForMaskedLM",
            ("ForMaskedLM", "ForPreTraining"),
            None,
            "logits",
            ("batch", "sequence"),
        ),
        Task(
            "text-generation",
            "AutoModelForCausalLM",
            ("ForCausalLM", "LMHeadModel"),
            "CAUSAL_LM",
            "logits",
            ("batch", "sequence"),
            causal=True,
        ),
        Task(
            "automatic-speech-recognition",
            "AutoModelForSpeechSeq2Seq",
            ("WhisperForConditionalGeneration",),
            "SEQ_2_SEQ_LM",
            "logits",
            ("batch", "sequence"),
            inputs=("input_features",),
            encoder_decoder=True,
        ),
        Task(
            "text2text-generation",
            "AutoModelForSeq2SeqLM",
            (
                "T5ForConditionalGeneration",
                "BartForConditionalGeneration",
                "PegasusForConditionalGeneration",
                "MarianMTModel",
            ),
            "SEQ_2_SEQ_LM",
            "logits",
            ("batch", "sequence"),
            encoder_decoder=True,
        ),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            ("ForQuestionAnswering",),
            "QUESTION_ANS",
            "start_logits",
            ("batch", "sequence"),
            further=("end_logits",),
        ),
        Task(
            "image-classification",
            "AutoModelForImageClassification",
            ("ForImageClassification",),
            None,
            "logits",
            ("batch",),
            _LABELS,
            inputs=("pixel_values",),
        ),
        Task(
            "image-feature-extraction",
            "AutoModel",
            ("VisionModel",),
            None,
            "last_hidden_state",
            ("batch",),
            inputs=("pixel_values",),
            tower="vision_model",
        ),
        Task(
            "feature-extraction",
            "AutoModel",
            ("Model",),
            "FEATURE_EXTRACTION",
            "last_hidden_state",
            ("batch", "sequence"),
            tower="text_model",
        ),
        Task(
            "sentence-similarity",
            "AutoModel",
            (),
            "FEATURE_EXTRACTION",
            "sentence_embedding",
            ("batch",),
            pooled=True,
        ),
    )
}

OTHER_NAMES: Final = dict.fromkeys(
    ("sentence-embedding", "sentence-embeddings"), "sentence-similarity"
)
"""Other names of tasks, each with the name in the table."""


def by_name(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UsageError: No such task is in the table.
    """
    task = TASKS.get(OTHER_NAMES.get(name, name))
    if task is None:
        msg = f"unknown task {name!r}"
        raise UsageError(msg, hint=did_you_mean(name, TASKS))
    return task


def detect(
    config: Mapping[str, Any], peft_types: tuple[str | None, ...] = (), *, pools: bool = False
) -> Task:
    """Find the task: what the adapters were trained for, else what the checkpoint is for.

    Args:
        config: The checkpoint's ``config.json``.
        peft_types: ``task_type`` of each adapter.
        pools: Whether the checkpoint is a sentence-transformers model with a pooling.

    Raises:
        UsageError: Adapters of different tasks, or nothing tells.
        UnsupportedError: The architecture belongs to a task that is not in the table.
    """
    known = {row.peft_type for row in TASKS.values()}
    kinds = {kind for kind in peft_types if kind in known and kind}
    if len(kinds) > 1:
        msg = f"the adapters were trained for different tasks: {', '.join(sorted(kinds))}"
        raise UsageError(msg, hint="Export them separately, or choose with --task.")
    rows = [row for row in TASKS.values() if not row.pooled]
    if pools and kinds <= {"FEATURE_EXTRACTION"}:
        return next(row for row in TASKS.values() if row.pooled)
    architectures = config.get("architectures") or []
    by_architecture = [
        row
        for architecture in architectures
        for row in rows
        if str(architecture).endswith(row.suffixes)
    ]
    by_adapter = [row for row in rows if row.peft_type in kinds]
    if by_adapter:  # SEQ_2_SEQ_LM is said of text and of speech: the architecture tells them apart
        return next((row for row in by_architecture if row in by_adapter), by_adapter[-1])
    if by_architecture:
        return by_architecture[0]
    if architectures:
        msg = f"no task is known for the architecture {architectures[0]!r}"
        raise UnsupportedError(msg, hint=f"Choose one with --task: {', '.join(TASKS)}.")
    msg = "neither the checkpoint's config nor the adapters tell the task"
    raise UsageError(msg, hint=f"Choose one with --task: {', '.join(TASKS)}.")
