"""The configuration of each kind of model, built as Triton's protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.triton.protobuf_schema import new_config, schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.triton.graph_io import Tensor
    from lora_export.triton.repository_options import RepositoryOptions

__all__ = [
    "ADAPTER",
    "FINGERPRINT",
    "TEXT",
    "add_warmup",
    "ensemble_config",
    "graph_config",
    "python_config",
    "tokenizer_config",
]

ADAPTER: Final = "adapter"
"""The input, or the request parameter, that names an adapter."""

TEXT: Final = "text"
FINGERPRINT: Final = "base_fingerprint"
"""The parameter of every configuration that says which base it belongs to."""

_KINDS: Final = {"cpu": "KIND_CPU", "gpu": "KIND_GPU"}


def graph_config(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    settings: RepositoryOptions,
    parameters: Mapping[str, str],
    *,
    backend: str,
    batched: bool = True,
) -> Any:
    """Return the configuration of a graph that a backend runs by itself.

    Args:
        name: The model's name.
        inputs: What the graph reads.
        outputs: What it returns.
        settings: The user's settings.
        parameters: Further parameters.
        backend: ``onnxruntime`` or ``tensorrt``.
        batched: Whether the first axis of everything is a batch of any size.
    """
    own = dict(parameters)
    if backend == "onnxruntime" and settings.threads:
        own["intra_op_thread_count"] = str(settings.threads)
    config = new_config(
        name=name,
        backend=backend,
        max_batch_size=settings.max_batch_size if batched else 0,
        input=[_input(each, batched=batched) for each in inputs],
        output=[_output(each, batched=batched) for each in outputs],
    )
    _finish(config, settings, own, kind=_KINDS.get(settings.device or "", "KIND_AUTO"))
    return config


def python_config(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    settings: RepositoryOptions,
    parameters: Mapping[str, str],
) -> Any:
    """Return the configuration of a model of the Python backend that holds adapters.

    The adapter is an input that may be left out: a request parameter names it then, or it is the
    base.

    Args:
        name: The model's name.
        inputs: What the graph reads.
        outputs: What it returns.
        settings: The user's settings.
        parameters: What the model reads of its configuration.
    """
    config = new_config(
        name=name,
        backend="python",
        max_batch_size=settings.max_batch_size,
        input=[_input(each) for each in inputs],
        output=[_output(each) for each in outputs],
    )
    config.input.add(name=ADAPTER, data_type=schema().TYPE_STRING, dims=[1], optional=True)
    own = {**parameters, "threads": str(settings.threads)}
    _finish(config, settings, own, kind=_KINDS[settings.device or "cpu"])
    return config


def tokenizer_config(
    name: str,
    outputs: Sequence[Tensor],
    settings: RepositoryOptions,
    parameters: Mapping[str, str],
    *,
    by_adapter: bool = False,
) -> Any:
    """Return the configuration of the model that turns texts into tokens.

    Args:
        name: The model's name.
        outputs: The tokens, as the graph reads them.
        settings: The user's settings.
        parameters: Further parameters.
        by_adapter: Whether it reads the name of each text's adapter as well.
    """
    messages = schema()
    config = new_config(
        name=name,
        backend="python",
        max_batch_size=settings.max_batch_size,
        input=[messages.ModelInput(name=TEXT, data_type=messages.TYPE_STRING, dims=[1])],
        output=[_output(each) for each in outputs],
        instance_group=[
            messages.ModelInstanceGroup(count=1, kind=messages.ModelInstanceGroup.KIND_CPU)
        ],
    )
    if by_adapter:
        config.input.add(name=ADAPTER, data_type=messages.TYPE_STRING, dims=[1])
    _set_parameters(config, parameters)
    return config


def ensemble_config(
    name: str, steps: Sequence[Any], settings: RepositoryOptions, parameters: Mapping[str, str]
) -> Any:
    """Return the configuration of models that run one after another (text → tokens → outputs).

    The response cache is here and not in the models: that of a model keeps errors too, and answers
    the next such request with nothing, as a success (Triton 2.51); that of an ensemble does not.

    Args:
        name: The ensemble's name.
        steps: The configurations of the models; what none before a step makes is an input.
        settings: The user's settings.
        parameters: Further parameters.
    """
    messages = schema()
    made = {each.name for step in steps[:-1] for each in step.output}
    config = new_config(
        name=name,
        platform="ensemble",
        max_batch_size=steps[0].max_batch_size,
        input={
            each.name: each for step in steps for each in step.input if each.name not in made
        }.values(),
        output=steps[-1].output,
    )
    for each in (*config.input, *config.output):
        each.ClearField("reshape")  # done by its step
    for each in config.input:
        each.optional = False  # an ensemble has no optional inputs; the base's name is empty
    for step in steps:
        config.ensemble_scheduling.step.append(
            messages.ModelEnsembling.Step(
                model_name=step.name, model_version=-1,
                input_map={each.name: each.name for each in step.input},
                output_map={each.name: each.name for each in step.output},
            )
        )  # fmt: skip
    if settings.response_cache:
        config.response_cache.enable = True
    _set_parameters(config, parameters)
    return config


def add_warmup(
    config: Any, name: str, files: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Add a request of one row that an instance runs before it is ready; changes `config`.

    Args:
        config: The model's configuration.
        name: What the request is called in the log.
        files: The file below ``warmup/`` with an input's bytes; the others are zeros, a string
            empty, and sizes that are the caller's 0.
        shapes: Sizes of the inputs that have a file, without the batch.
    """
    messages = schema()
    request = config.model_warmup.add(name=name, batch_size=1)
    for each in config.input:
        given = messages.ModelWarmup.Input(data_type=each.data_type)
        if each.name in files:
            given.dims.extend(shapes[each.name] or each.dims)
            given.input_data_file = files[each.name]
        else:
            given.dims.extend(max(size, 0) for size in each.dims)  # an empty past
            given.zero_data = True
        request.inputs[each.name].CopyFrom(given)


def _finish(
    config: Any, settings: RepositoryOptions, parameters: Mapping[str, str], *, kind: str
) -> None:
    """Set what all models have but ensembles and tokenizers; changes `config`."""
    messages = schema()
    _set_versions(config, settings)
    if config.max_batch_size:
        batching = config.dynamic_batching
        batching.max_queue_delay_microseconds = settings.max_queue_delay_us
        batching.preferred_batch_size.extend(settings.preferred_batch_sizes)
        if settings.max_queue_size or settings.queue_timeout_us:
            queue = batching.default_queue_policy
            queue.max_queue_size = settings.max_queue_size
            queue.default_timeout_microseconds = settings.queue_timeout_us
    group = config.instance_group.add(
        count=settings.instances,
        kind=messages.ModelInstanceGroup.Kind.Value(kind),
        gpus=settings.gpus if kind != "KIND_CPU" else (),
    )
    if settings.resources or settings.priority:
        group.rate_limiter.priority = settings.priority
        for resource, count in sorted(settings.resources.items()):
            group.rate_limiter.resources.add(name=resource, count=count)
    _set_parameters(config, parameters)


def _set_versions(config: Any, settings: RepositoryOptions) -> None:
    policy = config.version_policy
    if settings.versions == "all":
        policy.all.SetInParent()
    elif isinstance(settings.versions, int):
        policy.latest.num_versions = settings.versions
    else:
        policy.specific.versions.extend(settings.versions)


def _set_parameters(config: Any, parameters: Mapping[str, str]) -> None:
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value


def _input(tensor: Tensor, *, batched: bool = True) -> Any:
    messages = schema()
    one = messages.ModelInput(name=tensor.name, data_type=messages.DataType.Value(tensor.data_type))
    _set_dims(one, tensor.dims[1:] if batched else tensor.dims)
    return one


def _output(tensor: Tensor, *, batched: bool = True) -> Any:
    messages = schema()
    one = messages.ModelOutput(
        name=tensor.name, data_type=messages.DataType.Value(tensor.data_type)
    )
    _set_dims(one, tensor.dims[1:] if batched else tensor.dims)
    return one


def _set_dims(one: Any, dims: Sequence[int]) -> None:
    """Set the sizes; a number for each row (``adapter_ids``) is a vector of one to the client."""
    one.dims.extend(dims or [1])
    if not dims:
        one.reshape.SetInParent()
