"""Checks that the steps of an ensemble fit together, and fit the models that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ensemble_problems"]


def ensemble_problems(config: Any, models: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with an ensemble.

    Args:
        config: Its configuration.
        models: The configurations of all models of the repository.
    """
    if not config.ensemble_scheduling.step:
        yield "it has no step"
    known = {each.name: (each.data_type, list(each.dims)) for each in config.input}
    for step in config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if model is None:
            yield f"step {step.model_name!r} is not a model of the repository"
            continue
        if model.max_batch_size < config.max_batch_size:
            yield (
                f"max_batch_size is {config.max_batch_size}, that of its step "
                f"{step.model_name!r} {model.max_batch_size}"
            )
        yield from _input_problems(step, model, known)
        returns = {each.name: each for each in model.output}
        for name, tensor in sorted(step.output_map.items()):
            if name in returns:
                known[tensor] = (returns[name].data_type, list(returns[name].dims))
            else:
                yield f"step {step.model_name!r} has no output {name!r}"
    for each in config.output:
        if each.name not in known:
            yield f"no step makes the output {each.name!r}"
        elif not _fits(known[each.name], each):
            yield f"the output {each.name!r} is not what its step returns"


def _input_problems(
    step: Any, model: Any, known: Mapping[str, tuple[int, list[int]]]
) -> Iterator[str]:
    reads = {each.name: each for each in model.input}
    for name, tensor in sorted(step.input_map.items()):
        if name not in reads:
            yield f"step {step.model_name!r} has no input {name!r}"
        elif tensor not in known:
            yield f"nothing before step {step.model_name!r} makes {tensor!r}"
        elif not _fits(known[tensor], reads[name]):
            yield f"{tensor!r} does not fit the input {name!r} of {step.model_name!r}"
    for name, each in sorted(reads.items()):
        if name not in step.input_map and not each.optional:
            yield f"step {step.model_name!r} is not given {name!r}"


def _fits(made: tuple[int, list[int]], declared: Any) -> bool:
    data_type, dims = made
    return (
        data_type == declared.data_type
        and len(dims) == len(declared.dims)
        and all(-1 in {a, b} or a == b for a, b in zip(dims, declared.dims, strict=True))
    )
