"""The models that an export gets in a repository: configurations and files, nothing written.

onnxruntime   NAME-ADAPTER for each merged adapter; NAME for a batched graph
tensorrt      the same, of engines
python        NAME, with all adapters
and with texts  NAME-tokenizer, and MODEL-text for each of these
and with a response cache  MODEL-cached for each of these
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.graph_forms import ORT_FORM
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH, ServingMode
from lora_export.exports.adapter_companions import folder_of
from lora_export.exports.integrity_checks import require_files
from lora_export.exports.servable import require_servable
from lora_export.exports.stored_adapters import form_of, mode_of
from lora_export.triton.engine_models import engines_for
from lora_export.triton.graph_io import read_interface
from lora_export.triton.model_config import (
    ADAPTER,
    FINGERPRINT,
    add_warmup,
    ensemble_config,
    graph_config,
    python_config,
)
from lora_export.triton.model_folders import File
from lora_export.triton.protobuf_schema import CONFIG_NAME, config_text
from lora_export.triton.python_models import code_files, index_file, interface_of, serve
from lora_export.triton.repository_options import HANDFUL, Backend, RepositoryOptions
from lora_export.triton.serving_modes import GRAPH_SERVING, SERVING, session_bytes, stack_bytes
from lora_export.triton.token_inputs import own_texts, tokenizer_model
from lora_export.triton.warmup import warmup_requests

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.core.modes import ServingWord
    from lora_export.triton.warmup import Request

__all__ = ["Model", "ServingChoice", "choose", "plan_models", "require_files_of"]

_GIB: Final = 1 << 30
_SESSIONS: Final = 4


@dataclass(frozen=True)
class Model:
    """One folder of a repository.

    Attributes:
        name: Its name.
        config: Its configuration.
        files: Its files, the configuration left out.
        memory_bytes: About what the server takes for it on the CPU, all instances together.
    """

    name: str
    config: Any
    files: tuple[File, ...]
    memory_bytes: int

    @property
    def all_files(self) -> tuple[File, ...]:
        """Its files with the configuration."""
        return (*self.files, File(CONFIG_NAME, data=config_text(self.config)))


@dataclass(frozen=True)
class ServingChoice:
    """The chosen backend, way and adapters of a repository.

    Attributes:
        name: What its models' names begin with.
        backend: The backend.
        way: How a model of the Python backend runs an adapter.
        adapters: The adapters, or ``base``.
        text: Whether there is an ensemble that takes texts.
    """

    name: str
    backend: Backend
    way: ServingMode
    adapters: tuple[str, ...]
    text: bool = False


def choose(
    manifest: Manifest,
    name: str,
    *,
    backend: Backend | None,
    way: ServingWord | None,
    adapters: Sequence[str],
    text: bool,
) -> ServingChoice:
    """Return how an export is served, defaults filled in.

    Raises:
        AdapterError: There is no such adapter.
        ParityError: Its verification failed, or quantization took more of it than allowed.
        UnsupportedError: The backend cannot run what the export holds.
        UsageError: `way` is said of a backend that has no choice.
    """
    if manifest.base_graph.encoder is not None:
        msg = "encoder-decoders cannot be served: their two graphs take turns"
        raise UnsupportedError(msg, hint="Serve single graphs: encoders, decoders, images.")
    if form_of(manifest) == ORT_FORM:
        msg = f"the graph form {ORT_FORM!r} is not served: a server may have an older ONNX Runtime"
        raise UnsupportedError(msg, hint="Export again without --graph-form.")
    if way is not None and way not in set(ServingMode):
        msg = f"unknown way {way!r}"
        raise UsageError(msg, hint=f"There are: {', '.join(ServingMode)}.")
    names = tuple(adapters) or tuple(sorted(manifest.adapters)) or (BASE_GRAPH,)
    for each in names:
        require_servable(manifest, each)
    mode = mode_of(manifest)
    alone = GRAPH_SERVING[mode]
    if backend is None:
        few = alone.is_default and way is None and len(names) <= HANDFUL
        backend = "onnxruntime" if few else "python"
    if backend != "python" and way is not None:
        msg = f"--way {way} needs the Python backend; {backend} runs a graph as it is"
        raise UsageError(msg, hint="Leave it out, or add: --backend python")
    if backend != "python" and alone.shared is not None and adapters:
        msg = f"a batched graph of the backend {backend} has the rows of all adapters"
        raise UsageError(msg, hint="Leave --adapter out, or add: --backend python")
    if backend != "python" and not alone.is_possible:
        msg = f"the backend {backend} cannot be given the optional inputs of a swappable graph"
        raise UnsupportedError(
            msg, hint="Use --backend python, or export in --mode merged or batched."
        )
    return ServingChoice(name, backend, ServingMode(way or mode.value), names, text)


def plan_models(
    export_dir: Path, manifest: Manifest, choice: ServingChoice, settings: RepositoryOptions
) -> list[Model]:
    """Return the models of an export.

    Args:
        export_dir: The export directory, whose files were checked.
        manifest: Its manifest.
        choice: How it is served.
        settings: The user's settings.

    Raises:
        LoraExportError: Something cannot be served so.
    """
    if choice.backend == "python":
        models = [_python(export_dir, manifest, choice, settings)]
    else:
        shared = GRAPH_SERVING[mode_of(manifest)].shared
        graphs = choice.adapters if shared is None else (shared,)
        models = [_graph(export_dir, manifest, choice, each, settings) for each in graphs]
    run = list(models)
    if choice.text:
        models += _with_texts(export_dir, manifest, choice, run, settings)
    if settings.response_cache:
        models += [_ensemble(manifest, f"{e.name}-cached", [e.config], settings) for e in run]
    names = [each.name for each in models]
    if twice := {each for each in names if names.count(each) > 1}:
        msg = f"two models would be called {min(twice)!r}: an adapter has the name of a step"
        raise UnsupportedError(msg, hint="Serve it without --text, or use --backend python.")
    return models


def _graph(
    export_dir: Path,
    manifest: Manifest,
    choice: ServingChoice,
    graph: str,
    settings: RepositoryOptions,
) -> Model:
    """Return the model of one graph that a backend runs by itself."""
    name = choice.name if graph == BATCHED_GRAPH else f"{choice.name}-{graph}"
    record = manifest.graphs[graph]
    path = resolve_inside(export_dir, record.onnx)
    interface = read_interface(path)
    if interface.optional:
        msg = f"{record.onnx!r} has optional inputs, which {choice.backend} cannot be given"
        raise UnsupportedError(msg, hint="Use --backend python.")
    largest = settings.max_batch_size
    if choice.backend == "tensorrt":
        engines = engines_for(export_dir, manifest, graph)
        interface, largest = engines.interface, min(largest, engines.largest_batch or largest)
        files = [File(f"1/{plan.name}", plan) for plan in engines.plans.values()]
    else:
        files = [File("1/model.onnx", path)]
        files += [File(f"1/{each}", resolve_inside(export_dir, each)) for each in record.weights]
    config = graph_config(
        name, interface.inputs, interface.outputs,
        settings.model_copy(update={"max_batch_size": largest}),
        {FINGERPRINT: manifest.base.fingerprint, ADAPTER: graph},
        backend=choice.backend, batched=interface.batched,
    )  # fmt: skip
    if choice.backend == "tensorrt":
        config.cc_model_filenames.update({cc: plan.name for cc, plan in engines.plans.items()})
    first = BASE_GRAPH if graph == BATCHED_GRAPH else graph
    requests = warmup_requests(export_dir, manifest, first) if settings.warmup else []
    memory = session_bytes(manifest) + (
        stack_bytes(export_dir, manifest) if graph == BATCHED_GRAPH else 0
    )
    return _warmed(config, files, requests, memory * settings.instances)


def _python(
    export_dir: Path, manifest: Manifest, choice: ServingChoice, settings: RepositoryOptions
) -> Model:
    """Return the one model of the Python backend that holds the adapters."""
    adapters = [each for each in choice.adapters if each != BASE_GRAPH]
    interface = interface_of(export_dir, manifest, choice.way, adapters)
    if not interface.batched:
        msg = "the graph has no batch of the caller's size as its first axis"
        raise UnsupportedError(msg, hint="Use --backend onnxruntime.")
    for each in (*interface.inputs, *interface.outputs):
        if each.data_type == "TYPE_BF16":
            msg = f"{each.name!r} is bfloat16, which NumPy and so the Python backend do not have"
            raise UnsupportedError(msg, hint="Export with --dtype float16 or float32.")
    table, files = serve(export_dir, manifest, choice.way, adapters)
    if any(each.name in {ADAPTER, "adapter_ids"} for each in interface.inputs):
        msg = f"the graph has an input {ADAPTER!r} of its own"
        raise UnsupportedError(msg, hint="Use --backend onnxruntime.")
    session = session_bytes(manifest)
    mode = SERVING[choice.way]
    limit = settings.cache_bytes
    if limit is None:
        limit = _SESSIONS * session if mode.own_sessions else _GIB
    largest = max((line["nbytes"] for line in table["adapters"].values()), default=0)
    if largest > limit:
        msg = f"the largest adapter takes {largest} bytes, cache_bytes is {limit}"
        raise UsageError(msg, hint=f"Give --cache-bytes {largest} at least.")
    parameters = {FINGERPRINT: manifest.base.fingerprint, "cache_bytes": str(limit)}
    config = python_config(choice.name, interface.inputs, interface.outputs, settings, parameters)
    warm = settings.warmup and not mode.own_sessions
    requests = warmup_requests(export_dir, manifest, BASE_GRAPH) if warm else []
    held = min(limit, sum(line["nbytes"] for line in table["adapters"].values()))
    shared = session if table["base"] or not mode.own_sessions else 0
    memory = held + shared + (stack_bytes(export_dir, manifest) if mode.rows else 0)
    below = [*code_files(), index_file(table), *files]
    one = {each.path: each for each in below}.values()  # graphs share weight files
    versioned = [File(f"1/{each.path}", each.source, each.data) for each in one]
    return _warmed(config, versioned, requests, memory * settings.instances)


def _warmed(config: Any, files: list[File], requests: list[Request], memory: int) -> Model:
    """Return a model with its warm-up requests; what they do not say of its inputs is zeros."""
    wanted = {each.name for each in config.input}
    for request in requests:
        names = {each: f"{request.name}.{each}" for each in request.inputs if each in wanted}
        add_warmup(config, request.name, names, request.shapes)
        files = [*files, *(File(f"warmup/{f}", data=request.inputs[n]) for n, f in names.items())]
    return Model(config.name, config, tuple(files), memory)


def _with_texts(
    export_dir: Path,
    manifest: Manifest,
    choice: ServingChoice,
    models: Sequence[Model],
    settings: RepositoryOptions,
) -> list[Model]:
    """Return the tokenizers of the export, and for each model its ensemble with one of them.

    Adapters whose tokenizer is not the base's have one of their own; a model that holds several
    adapters has one that takes their names.
    """
    parameters = {FINGERPRINT: manifest.base.fingerprint}
    inputs = read_interface(resolve_inside(export_dir, manifest.base_graph.onnx)).inputs
    texts = own_texts(export_dir, manifest, choice.adapters)
    alone = GRAPH_SERVING[mode_of(manifest)]
    if texts and alone.shared is not None and choice.backend != "python":
        msg = f"{min(texts)!r} has a tokenizer of its own, and rows of one graph share one"
        raise UnsupportedError(msg, hint="Serve it without --text, or use --backend python.")
    shared = texts if choice.backend == "python" else {}
    made: dict[str, Model] = {}
    ensembles = []
    for each in models:
        held = each.config.parameters
        own = texts.get(held[ADAPTER].string_value) if ADAPTER in held and not shared else None
        name = f"{each.name if own is not None else choice.name}-tokenizer"
        if name not in made:
            config, files = tokenizer_model(
                export_dir, name, inputs, settings, parameters, text=own, adapters=shared
            )
            made[name] = Model(name, config, tuple(files), 0)
        steps = [made[name].config, each.config]
        ensembles.append(_ensemble(manifest, f"{each.name}-text", steps, settings))
    return [*made.values(), *ensembles]


def _ensemble(
    manifest: Manifest, name: str, steps: Sequence[Any], settings: RepositoryOptions
) -> Model:
    """Return models that run one after another as one.

    The response cache's key has the version. It is a number of the content where a graph is run by
    itself: what was cached for another graph, that had the name before, is not found again.
    """
    config = ensemble_config(name, steps, settings, {FINGERPRINT: manifest.base.fingerprint})
    version, held = 1, steps[-1].parameters
    if settings.response_cache and ADAPTER in held:
        record = manifest.graphs[held[ADAPTER].string_value]
        hashes = [manifest.files[each] for each in (*record.graph_files, *record.weights)]
        version = 1 + int(hashlib.sha256("".join(hashes).encode()).hexdigest()[:12], 16)
    return Model(name, config, (File(f"{version}/.keep", data=b""),), 0)


def require_files_of(
    export_dir: Path,
    manifest: Manifest,
    *,
    names: Collection[str] | None = None,
    base_weights: bool = True,
) -> None:
    """Require that everything a repository may take from an export is there, with its hash.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        names: The adapters that are taken; all by default.
        base_weights: Whether the weights of the base are taken.

    Raises:
        ExportDirectoryError: A file is missing or differs.
    """
    taken = manifest.adapters.keys() if names is None else set(names)
    graphs = [g for n, g in manifest.graphs.items() if n in taken or n not in manifest.adapters]
    used = {file for graph in graphs for file in (*graph.graph_files, *graph.weights)}
    used |= {
        each.pack.safetensors for n, each in manifest.adapters.items() if each.pack and n in taken
    }
    used |= {
        f"{folder_of(name)}/{file}"
        for name, each in manifest.adapters.items()
        if each.companions and name in taken
        for file in each.companions.files
    }
    if not base_weights:
        used -= set(manifest.base_graph.weights)
    require_files(export_dir, manifest, sorted(used), hashed=True)
