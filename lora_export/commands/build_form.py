"""The form of the graph that a recipe asks for: what it needs, and the graph rewritten to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.graph_forms import ORT_FORM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.commands.recipe import Recipe
    from lora_export.core.graph_forms import GraphForm
    from lora_export.core.progress import Progress
    from lora_export.core.targets import Target
    from lora_export.graph.spec.signature import Choices
    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["in_form", "opset_of_form", "require_form", "require_form_for", "traced_opset"]

_PORTABLE = "Leave --graph-form ort out: the portable form runs everywhere."


def require_form(recipe: Recipe, target: Target) -> None:
    """Require what the recipe alone tells of its form.

    Raises:
        UsageError: A setting contradicts the form.
        UnsupportedError: The target or a server may have no such ONNX Runtime, or the form has no
            static cache.
    """
    if recipe.graph_form != ORT_FORM:
        return
    if target.tensorrt or target.rtx:
        msg = f"the graph form 'ort' is for ONNX Runtime; the target {target.name!r} has TensorRT"
        raise UnsupportedError(msg, hint=_PORTABLE)
    if recipe.triton is not None:
        msg = "the graph form 'ort' is not served: a server may have an older ONNX Runtime"
        raise UnsupportedError(msg, hint="Leave the section triton out, or --graph-form.")
    if recipe.graph is not None or recipe.opset is not None:
        kept = recipe.graph is not None
        what = "a graph of your own keeps its form" if kept else "it has an opset of its own"
        flag = "--graph" if kept else "--opset"
        raise UsageError(f"the graph form 'ort': {what}", hint=f"Leave {flag} out.")
    if recipe.cache_length is not None:
        msg = "the graph form 'ort' has no static cache: its cache is a buffer of any length"
        raise UnsupportedError(msg, hint="Leave --cache-length out.")


def require_form_for(recipe: Recipe, task: Task, dtype: str, choices: Choices) -> None:
    """Require that a graph for a task has the form that is asked for.

    Raises:
        UnsupportedError: It is no decoder with a cache, or of another dtype.
    """
    if recipe.graph_form != ORT_FORM:
        return
    if not task.causal or not choices.cache:
        what = f"the task {task.name!r}" if not task.causal else "--no-cache"
        msg = f"the graph form 'ort' is for decoders with a cache, and not for {what}"
        raise UnsupportedError(msg, hint=_PORTABLE)
    from lora_export.graph.ort_form.ort_template import ORT_DTYPES

    if dtype not in ORT_DTYPES:
        msg = f"the graph form 'ort' has no {dtype}"
        raise UnsupportedError(msg, hint=f"Give --dtype {' or '.join(ORT_DTYPES)}.")


def opset_of_form(form: GraphForm) -> int | None:
    """Return the opset of a graph of a form; None where the target decides."""
    if form != ORT_FORM:
        return None
    from lora_export.graph.ort_form.ort_template import ORT_OPSET

    return ORT_OPSET


def traced_opset(form: GraphForm, opset: int) -> int:
    """Return the opset that a graph is traced with, to get `opset` in a form."""
    if form != ORT_FORM:
        return opset
    from lora_export.graph.ort_form.ort_template import TRACED_OPSET

    return TRACED_OPSET


def in_form(
    form: GraphForm, template: GraphTemplate, config: Mapping[str, Any], tell: Progress
) -> GraphTemplate:
    """Return a traced graph in a form.

    Args:
        form: The form.
        template: The graph as it was traced.
        config: The base's config, which says how many positions a text has.
        tell: Told what became operators of ONNX Runtime.

    Raises:
        UnsupportedError: Something in the graph has no such form.
    """
    if form != ORT_FORM:
        return template
    from lora_export.graph.ort_form.ort_template import ort_template
    from lora_export.weights.positions import count_positions

    found, applied = ort_template(template, count_positions(config))
    outside = applied.attentions - applied.rotated
    rest = f"; {outside} are rotated before it" if outside and applied.rotated else ""
    tell.note(
        f"graph form ort: {applied.attentions} attentions, {applied.skip_norms} norms with their "
        f"sums, {applied.norms} norms{rest}"
    )
    return found
