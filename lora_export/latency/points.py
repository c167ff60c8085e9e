"""The points of a latency grid, and the inputs of an export at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.modes import BASE_GRAPH, Mode
from lora_export.core.targets import RTX
from lora_export.exports.stored_adapters import find_stored, shared_graphs
from lora_export.graph.spec import tasks
from lora_export.graph.spec.signature import PAST
from lora_export.latency.bench_report import point_name
from lora_export.ondevice.printable import shell_command
from lora_export.ondevice.trt.libraries import library_row
from lora_export.runtime.trt import library_version, targets_of
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.latency_case import further_feeds
from lora_export.verification.inputs.random_inputs import (
    common_vocab_size,
    longest_text,
    make_cases,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.manifest import Manifest
    from lora_export.latency.bench_report import CellKind
    from lora_export.verification.inputs.feeding import Feeding
    from lora_export.weights.checkpoint import Checkpoint

    Bind = Callable[["Point", int], Callable[[], object]]
    """Gives what one run of an open subject is, at a point of the grid and with a seed."""

__all__ = ["Point", "Source", "grid"]


@dataclass(frozen=True)
class Source:
    """An export whose graphs are timed.

    Attributes:
        export_dir: The export directory.
        manifest: Its manifest.
        config: The model's config, for inputs.
        checkpoint: The base, where torch runs too.
        adapters: Its adapters by name, where torch runs too.
        labels_count: The width of the base's own head, for torch.
    """

    export_dir: Path
    manifest: Manifest
    config: Mapping[str, Any]
    checkpoint: Checkpoint | None = None
    adapters: Mapping[str, Adapter] | None = None
    labels_count: int | None = None

    @property
    def causal(self) -> bool:
        """Whether the graphs are decoders."""
        return tasks.by_name(self.manifest.base.task).causal

    @property
    def paired(self) -> bool:
        """Whether each is an encoder and a decoder."""
        return self.manifest.base_graph.encoder is not None

    @property
    def cached(self) -> bool:
        """Whether they read the keys and values of past positions."""
        return self.paired or any(
            each.name.startswith(PAST) for each in self.feeding.signature.inputs
        )

    @property
    def feeding(self) -> Feeding:
        """The interface of its graphs, required to be one that can be fed.

        Raises:
            UnsupportedError: They have inputs that are not known here.
        """
        feeding = feeding_of(self.export_dir, self.manifest.base_graph)
        if feeding.reason:
            msg = f"{str(self.export_dir)!r} cannot be timed: {feeding.reason}"
            raise UnsupportedError(msg, hint="Time it where its inputs are known.")
        return feeding

    def graphs(self) -> list[str]:
        """Return the names to time: the base, each adapter, the graphs that adapters share."""
        alone = [name for name in self.manifest.adapters if self.mode(name) is not Mode.BATCHED]
        return [BASE_GRAPH, *shared_graphs(self.manifest), *alone]

    def mode(self, graph: str) -> Mode:
        """Return how `graph` holds its adapter."""
        return self.manifest.graphs[self.graph_of(graph)].mode

    def graph_of(self, name: str) -> str:
        """Return the graph that runs `name`, which may be an adapter in a graph of several."""
        stored = find_stored(self.manifest, name)
        return name if stored is None else stored.graph

    def files(self, graph: str) -> dict[str, str]:
        """Return the SHA-256 of the files of a graph: its own, its weights', its adapter's."""
        record, stored = (
            self.manifest.graphs[self.graph_of(graph)],
            find_stored(self.manifest, graph),
        )
        names = [*record.graph_files, *record.weights]
        if stored is not None and stored.pack is not None:
            names.append(stored.pack)
        return {name: self.manifest.files[name] for name in names if name in self.manifest.files}

    def engine(self, graph: str, library: str) -> tuple[str, str]:
        """Return the graph that has the engine which runs `graph`, and the engine's target.

        Raises:
            UsageError: There is none of the library, in the version that is installed.
            UnsupportedError: The graph is an encoder and its decoder, two engines.
            DeviceError: The library is not installed.
        """
        if self.paired:
            msg = f"the engines of {graph!r} are two, an encoder's and a decoder's: not timed"
            raise UnsupportedError(msg, hint="Time its graphs: --runner ort-cpu.")
        held, row = self.graph_of(graph), library_row(library)
        targets = targets_of(self.manifest, held, library)
        if not targets:
            installed = f"{row.title} {library_version(library)}"
            msg = f"{str(self.export_dir)!r} has no engine of {held!r} for {installed}"
            where, target = ("", RTX) if row.builds_ahead else (" on this device", "TARGET")
            command = f"lora-export build EXPORT --target {target} --graph {shell_command([held])}"
            raise UsageError(msg, hint=f"Build it{where}: {command}")
        if len(targets) > 1:
            msg = f"{held!r} has engines for {', '.join(targets)}"
            raise UsageError(msg, hint="Keep the one of this device in the export.")
        return held, targets[0]

    def feeds(self, point: Point, graph: str, *, seed: int) -> dict[str, npt.NDArray[Any]]:
        """Return values for the inputs of a graph at one point of the grid; see `open_two`."""
        (case,) = make_cases(
            self.config,
            self.feeding.signature,
            seed=seed,
            left_padding=self.causal,
            shapes=((point.batch, point.source or point.length),),
            past=0 if self.paired else point.past,
            padded=False,
            vocab_size=common_vocab_size(self.config, self.manifest),
        )
        return {**case.feeds, **further_feeds(self.manifest, self.mode(graph), point.batch)}


@dataclass(frozen=True)
class Point:
    """One point of the grid: new tokens of each row, and those that the cache holds before.

    Attributes:
        text: Whether rows are made of tokens; an image or a sound has none.
        source: Tokens of the encoder's input, where the point is a token of its decoder.
    """

    kind: CellKind
    batch: int
    length: int
    past: int = 0
    text: bool = True
    source: int = 0

    @property
    def name(self) -> str:
        """The name that people read: ``prefill 1×128``, ``decode 1×1 after 512``."""
        return point_name(self.kind, self.batch, self.length, self.past, self.source)


def grid(
    source: Source, batches: Sequence[int], lengths: Sequence[int], pasts: Sequence[int]
) -> list[Point]:
    """Return the points to measure; of a decoder prefills, and for each past one token after it.

    Raises:
        UsageError: A point is longer than the model, or a past is given without a cache.
    """
    longest = longest_text(source.config)
    if pasts and not source.cached:
        msg = f"--past needs a decoder with a cache, and {str(source.export_dir)!r} has none"
        raise UsageError(msg, hint="Leave --past out, or export without --no-cache.")
    text = "input_ids" in source.feeding.signature.input_names
    if not text:  # an image has no length
        lengths = (1,)
    most = max((*lengths, *(past + 1 for past in pasts)))
    if most > longest:
        msg = f"{most} tokens are more than the {longest} that the model has positions for"
        raise UsageError(msg, hint="Choose shorter ones with --length and --past.")
    asked = [(batch, length) for batch in batches for length in lengths]
    kind: CellKind = "prefill" if source.cached else "forward"
    points = [Point(kind, *shape, text=text) for shape in source.feeding.shapes(asked)]
    read = max(lengths) if source.paired else 0
    points += [Point("decode", batch, 1, past, source=read) for batch in batches for past in pasts]
    return points
