"""``lora_export.merge.json``: the sources of a merged checkpoint, and hashes that prove them.

It lies beside the weights. With the base and the adapter that it names, the same merge gives the
same hashes; with the base alone, ``merge --unmerge`` gives the base back, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.quantization_record import StoredForm, TrainingBase
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file, reason_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "NOT_ASKED",
    "RECORD_NAME",
    "MergeRecord",
    "MergedAdapter",
    "MergedBase",
    "MergedTensor",
    "MergedVerification",
    "read_record",
]

NOT_ASKED: Final = "not compared with PEFT"
"""The reason of a merge without ``--verify``."""

RECORD_NAME: Final = "lora_export.merge.json"
_FORMAT_VERSION: Final = 1


class _Row(BaseModel):
    model_config = ConfigDict(
        extra="ignore", frozen=True, defer_build=True, protected_namespaces=()
    )


class MergedBase(_Row):
    """The base.

    Attributes:
        source: Where it was, seen from the merged checkpoint.
        model_type: Its ``model_type``.
        fingerprint: Its fingerprint, over the tensors that its files hold.
        quantization: How its weights are stored; left out where they are floats.
        trained_on: The quantized base of the adapter, where this is the original of it.
    """

    source: str
    model_type: str
    fingerprint: str
    quantization: StoredForm | None = None
    trained_on: TrainingBase | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the keys that have a value: a record of a float base has no others."""
        return {key: value for key, value in handler(self).items() if value is not None}


class MergedAdapter(_Row):
    """The adapter; `sha256` is over the files that it was read from."""

    name: str
    source: str
    format: str
    rank: int
    sha256: str
    tensors_total: int
    tensors_applied: int
    dropped: list[str]


class MergedTensor(_Row):
    """A tensor that is not the base's: its stored bytes, and what rounding left of the delta.

    The two figures are null where no delta was added (a saved head, a cast).
    """

    dtype: str
    shape: list[int]
    sha256: str
    relative_error: float | None = None
    unmoved_share: float | None = None


class MergedFidelity(_Row):
    """The figures of all low-rank updates together; see ``weights/fidelity.py``."""

    relative_error: float
    unmoved_share: float


class MergedVerification(_Row):
    """The comparison of the merged checkpoint with the unmerged adapter.

    Attributes:
        verdict: ``pass``, ``fail``, ``ambiguous`` or ``unverified``.
        reason: Why.
        relative_l2: The relative L2 error of the outputs; null where nothing was compared.
        tolerance: The largest that passes.
        effect: What the adapter changes, relative L2; null where it is not measured.
        task: The task whose model was run.
    """

    verdict: Literal["pass", "fail", "ambiguous", "unverified"] = "unverified"
    reason: str = NOT_ASKED
    relative_l2: float | None = None
    tolerance: float | None = None
    effect: float | None = None
    task: str | None = None


class MergeRecord(_Row):
    """The whole record.

    Attributes:
        format_version: 1; a newer one is refused.
        tool: The version that merged.
        base: The base.
        adapter: The adapter.
        dtype: What all floating tensors were cast to; null where each kept its own.
        fingerprint: The merged checkpoint's own (as ``inspect --hash`` computes it).
        renamed_by: What was put before the base's names, which had no head's model around them.
        brought: Tensors that only the adapter has.
        float32: Tensors kept in float32 because the dtype would have lost too much.
        tensors: The tensors that are not the base's, by name.
        fidelity: What the merge kept of the adapter.
        no_effect: Why the merge changes nothing; null where it changes something.
        notes: The notes shown to the user on the adapter and its base.
        companions: What was taken from the adapter's folder besides its tensors: ``tokenizer``,
            ``chat template``, or names of files.
        verification: How it compares with the unmerged adapter.
    """

    format_version: Literal[1] = _FORMAT_VERSION
    tool: str
    base: MergedBase
    adapter: MergedAdapter
    dtype: str | None
    fingerprint: str
    renamed_by: str
    brought: list[str]
    float32: list[str]
    tensors: dict[str, MergedTensor]
    fidelity: MergedFidelity
    no_effect: str | None = None
    notes: list[str] = []
    companions: list[str] = []
    verification: MergedVerification = MergedVerification()


def read_record(folder: Path) -> MergeRecord:
    """Return the record in a merged checkpoint.

    Raises:
        InputError: There is none, or it is damaged.
        UnsupportedError: A newer version wrote it.
    """
    path = folder / RECORD_NAME
    try:
        raw = read_file(path, TABLE_LIMIT_BYTES)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            msg = f"cannot read {str(path)!r}: {reason_of(error)}"
            hint = "The checkpoint is damaged: copy or merge it again."
            raise InputError(msg, hint=hint) from error
        msg = (
            f"{str(folder)!r} is not a checkpoint that lora-export merged: it has no {RECORD_NAME}"
        )
        raise InputError(
            msg, hint="A merge by another tool records nothing; use the base itself."
        ) from error
    try:
        return MergeRecord.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if where == "format_version" and isinstance(first["input"], int):
            msg = f"{str(path)!r} has format_version {first['input']}"
            raise UnsupportedError(
                msg, hint=f"This version reads {_FORMAT_VERSION}: update lora-export."
            ) from error
        msg = f"{str(path)!r} is damaged: {where or 'the file'}: {first['msg']}"
        raise InputError(msg, hint="Copy the checkpoint again, or merge again.") from error
