"""An adapter analysed, module by module: frozen values for text, JSON and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.adapters.combine import scaled
from lora_export.adapters.fit import CONV1D_TYPES, header_parameters, prefix_of
from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.formats.peft_write import write_peft
from lora_export.adapters.methods.interface import TO_LORA
from lora_export.adapters.resolve import ModelNames
from lora_export.commands.analyze.amplification import Amplification, amplification_of
from lora_export.commands.analyze.compress import Compressed, Cut, compress
from lora_export.commands.analyze.spectrum import spectrum_of
from lora_export.commands.analyze.subspace import similarity
from lora_export.core.errors import AdapterError, ExportDirectoryError, UnsupportedError
from lora_export.core.files import is_vacant, publish_folder, staging_folder
from lora_export.core.tensors import nbytes
from lora_export.weights.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from lora_export.adapters.canonical import Adapter, LowRank
    from lora_export.commands.analyze.spectrum import Float64Array, Spectrum
    from lora_export.core.progress import Progress
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["Analysis", "Compression", "ModuleRow", "analyze", "compress_to"]


@dataclass(frozen=True)
class ModuleRow:
    """One module.

    Attributes:
        module: Its path.
        shape: (out, in) of its update.
        rank: r.
        singular_values: Of ``s·B A``, descending.
        norm: ‖s·B A‖, Frobenius.
        effective_rank: ``exp`` of the entropy of the normalised singular values.
        stable_rank: ``‖·‖² / σ₁²``.
        rank_90: Directions that hold 90 % of the energy Σσ².
        rank_99: The same for 99 %.
        amplification: Against the base's weight, where a base is given.
        similarity: φ with the other adapter, by matrix (``A``, ``B``), where one is given.
    """

    module: str
    shape: tuple[int, int]
    rank: int
    singular_values: tuple[float, ...]
    norm: float
    effective_rank: float
    stable_rank: float
    rank_90: int
    rank_99: int
    amplification: Amplification | None = None
    similarity: Mapping[str, Float64Array] | None = None


@dataclass(frozen=True)
class Analysis:
    """An adapter.

    Attributes:
        source: Where it was read from.
        other: The adapter it is compared with.
        base: The base it is compared with.
        magnitudes: Whether it is DoRA: what is analysed is the update before rows are scaled.
        modules: One row each.
        only_here: Modules that the other adapter does not have.
        only_there: Modules that only the other adapter has.
    """

    source: str
    other: str | None
    base: str | None
    magnitudes: bool
    modules: tuple[ModuleRow, ...]
    only_here: tuple[str, ...] = ()
    only_there: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compression:
    """A smaller adapter that was written."""

    output: str
    bytes_before: int
    bytes_after: int
    modules: tuple[Compressed, ...]


def read_plain(path: Path, reading: Mapping[str, Any] | None = None) -> Adapter:
    """Read the adapter at `path`, which must have a low-rank update.

    Raises:
        InputError: Nothing is there, or it is damaged.
        AdapterError: It has no low-rank update.
    """
    adapter = read_adapter(path, name="adapter", source=str(path), **dict(reading or {}))
    if adapter.computed and not adapter.low_rank:
        msg = f"adapter {str(path)!r} is of the method {adapter.method}: it has no ranks"
        raise UnsupportedError(msg, hint=f"{TO_LORA}.")
    if not adapter.low_rank:
        msg = f"adapter {str(path)!r} has no low-rank update"
        raise AdapterError(msg, hint="There is nothing to analyse: it replaces parameters whole.")
    return adapter


def analyze(
    path: Path,
    *,
    other: Path | None = None,
    base: Path | None = None,
    reading: Mapping[str, Any] | None = None,
    progress: Progress,
) -> Analysis:
    """Analyse the adapter at `path`.

    Args:
        path: The adapter.
        other: A second one of the same base, for φ.
        base: The base, for the amplification factors.
        reading: How both are read: ``format``, ``alpha``, ``enable_lora`` of `read_adapter`.
        progress: Told about the bytes of the base.

    Raises:
        LoraExportError: See the class of the error.
    """
    adapter = read_plain(path, reading)
    others = {}
    if other is not None:
        others = {each.module: each for each in read_plain(other, reading).low_rank}
        if not others.keys() & {each.module for each in adapter.low_rank}:
            msg = f"{str(path)!r} and {str(other)!r} have no module in common"
            raise AdapterError(msg, hint="Compare adapters of one base.")
    weights = _Weights(adapter, open_checkpoint(base)) if base is not None else None
    progress.start("analyzing modules", weights.total_bytes if weights else None)
    rows = []
    for update in adapter.low_rank:
        spectrum = spectrum_of(update)
        amplification = weights.compare(update, spectrum) if weights else None
        rows.append(_row(spectrum, amplification, update, others.get(update.module)))
        if weights:
            progress.advance(weights.bytes_of(update))
    own = {row.module for row in rows}
    missing = [row.module for row in rows if other is not None and row.module not in others]
    return Analysis(
        source=str(path),
        other=str(other) if other is not None else None,
        base=str(base) if base is not None else None,
        magnitudes=any(update.magnitude is not None for update in adapter.low_rank),
        modules=tuple(rows),
        only_here=tuple(missing),
        only_there=tuple(module for module in others if module not in own),
    )


def _row(
    spectrum: Spectrum,
    amplification: Amplification | None,
    update: LowRank,
    other: LowRank | None,
) -> ModuleRow:
    alike = None
    if other is not None:
        alike = {"A": similarity(update, other, "A"), "B": similarity(update, other, "B")}
    return ModuleRow(
        module=spectrum.module,
        shape=spectrum.shape,
        rank=spectrum.rank,
        singular_values=tuple(map(float, spectrum.values)),
        norm=spectrum.norm,
        effective_rank=spectrum.effective_rank,
        stable_rank=spectrum.stable_rank,
        rank_90=spectrum.rank_of_energy(0.9),
        rank_99=spectrum.rank_of_energy(0.99),
        amplification=amplification,
        similarity=alike,
    )


class _Weights:
    """The weights of a base that an adapter updates."""

    def __init__(self, adapter: Adapter, checkpoint: Checkpoint) -> None:
        model_type = str(checkpoint.config["model_type"])
        parameters = header_parameters(checkpoint.tensors)
        names = ModelNames(parameters, prefix_of(model_type, parameters, adapter))
        self._conv1d = model_type in CONV1D_TYPES or bool(adapter.config.get("fan_in_fan_out"))
        self._found = {}
        for update in adapter.low_rank:
            parameter = names.find(update.parameter)
            if parameter is None:
                msg = f"the base {checkpoint.source!r} has no parameter {update.parameter!r}"
                raise AdapterError(msg, hint="Is this the adapter's base?")
            self._found[update.module] = checkpoint.tensors[parameter.name]

    @property
    def total_bytes(self) -> int:
        return sum(map(nbytes, self._found.values()))

    def bytes_of(self, update: LowRank) -> int:
        return nbytes(self._found[update.module])

    def compare(self, update: LowRank, spectrum: Spectrum) -> Amplification:
        weight = self._found[update.module]
        out_width, in_width = spectrum.shape
        shape = (weight.shape[0], nbytes(weight) // weight.dtype.itemsize_bytes // weight.shape[0])
        input_first = update.embedding or (self._conv1d and shape == (in_width, out_width))
        if shape != ((in_width, out_width) if input_first else (out_width, in_width)):
            msg = (
                f"the update of {update.module!r} is {[out_width, in_width]}, "
                f"the weight {list(weight.shape)}"
            )
            raise AdapterError(msg, hint="Is this the adapter's base?")
        if not weight.dtype.floating:
            msg = f"{update.parameter!r} of the base is {weight.dtype.name}"
            raise UnsupportedError(msg, hint="Give a base that is not quantized.")
        return amplification_of(spectrum, weight, input_first=input_first)


def compress_to(
    path: Path,
    output: Path,
    cut: Cut,
    *,
    scale: float = 1.0,
    reading: Mapping[str, Any] | None = None,
) -> Compression:
    """Write a smaller adapter in PEFT's format to `output`, which appears complete or not at all.

    Args:
        path: The adapter.
        output: A new folder.
        cut: How far each update is cut.
        scale: Multiplies the updates.
        reading: See `analyze`.

    Raises:
        LoraExportError: See the class of the error.
    """
    adapter = scaled(read_plain(path, reading), scale)
    smaller, rows = compress(adapter, cut)
    if not is_vacant(output):
        msg = f"{str(output)!r} exists already"
        raise ExportDirectoryError(msg, hint="Choose another --out; nothing was changed.")
    with staging_folder(output.parent, output.name) as staging:
        write_peft(smaller, staging)
        publish_folder(staging, output)
    return Compression(
        str(output), sum(map(nbytes, adapter.tensors)), sum(map(nbytes, smaller.tensors)), rows
    )
