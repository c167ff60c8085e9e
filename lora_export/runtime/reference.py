"""The reference: the adapter running *unmerged* in torch, through PEFT, in float32.

An independent path: transformers reads the checkpoint, PEFT reads the adapter and adds its own
layers. Of the base's folder transformers sees the config and the weights alone (`bare_folder`), so
that it does not load an adapter that lies there too. PEFT reads the adapter's own files where their
names are exactly the model's. Otherwise (another format, several combined, names that had to be
resolved) it reads a folder that is written from what was resolved. A factor (``--scale``), which
PEFT's files cannot hold, multiplies PEFT's scales, as its ``scale_layer`` does. PEFT is checked to
have loaded every tensor. How adapters are combined is proven by the tests, with PEFT's
``add_weighted_adapter`` as the oracle.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.formats.delta import DELTA
from lora_export.adapters.formats.peft_method_write import write_method
from lora_export.adapters.formats.peft_write import write_peft
from lora_export.core.dtypes import to_float32
from lora_export.core.errors import AdapterError, CheckpointError, MissingRuntimeError
from lora_export.core.installation import install_command
from lora_export.core.supported_versions import require_supported
from lora_export.core.tensors import nbytes, read_all
from lora_export.exports.plan import count_labels
from lora_export.graph.spec import tasks
from lora_export.runtime.pooling import sentence_embedding
from lora_export.runtime.reference_files import bare_folder, to_reference_names
from lora_export.runtime.reference_methods import disabled_layers, require_every_tensor
from lora_export.runtime.reference_whole import WholeTensors, load_whole, without_whole
from lora_export.runtime.torch_runner import TorchRunner, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from lora_export.adapters.canonical import Adapter
    from lora_export.graph.spec.tasks import Task
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["Reference", "estimate_bytes", "require_reference", "require_torch"]

_PACKAGES: Final = ("torch", "transformers", "peft")
_RUNTIME_COPIES: Final = 2.1
_DORA_SCALE: Final = 1e-12
_OUTPUT_BYTES: Final = 2 * 4 + 4 * 8
_OVERHEAD_BYTES: Final = 600_000_000
"""What the libraries themselves take, generously."""


def require_reference() -> None:
    """Raise `MissingRuntimeError` where torch, transformers or PEFT is missing or too old."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"the reference runs in PEFT; not installed: {', '.join(missing)}"
        raise MissingRuntimeError(
            msg,
            hint=f"Install it {install_command('export')}; or verify against the golden outputs: "
            "verify OUT",
        )
    require_supported(*_PACKAGES, "accelerate")


def require_torch(device: str) -> None:
    """Raise `MissingRuntimeError` where torch with its kin, or the device, is not there."""
    require_reference()
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        msg = f"torch {torch.__version__} sees no CUDA device"
        raise MissingRuntimeError(msg, hint="See what is installed: lora-export doctor")


def estimate_bytes(checkpoint: Checkpoint, *, tokens: int, copies: float = _RUNTIME_COPIES) -> int:
    """Estimate the memory that a comparison takes at its peak.

    The reference holds float32 weights, and after it the runtime holds its own, at worst twice; to
    either come the outputs of all inputs, kept in float32 twice and compared in float64.

    Args:
        checkpoint: The base.
        tokens: Tokens of all inputs together.
        copies: How often the float32 weights are held at the peak.
    """
    weights = sum(
        nbytes(tensor) // tensor.dtype.itemsize_bytes * 4 for tensor in checkpoint.tensors.values()
    )
    width = max(int(checkpoint.config.get(key) or 0) for key in ("vocab_size", "hidden_size"))
    return int(weights * copies) + _OUTPUT_BYTES * tokens * width + _OVERHEAD_BYTES


class Reference:
    """A base model in torch, with or without one adapter.

    Args:
        checkpoint: The base.
        task: The export's task.
        adapter: The adapter, or None for the base alone.
        labels_count: The width of the base's own head; an adapter's is taken from its tensors.
        vocab_size: The number of tokens that the adapter brings, where that is not the base's.

    Attributes:
        after_model: The tensors of what follows the model, where sentence embeddings are computed.

    Raises:
        CheckpointError: transformers cannot load the base.
        AdapterError: PEFT cannot load the adapter, or loaded it incompletely.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        task: Task,
        *,
        adapter: Adapter | None,
        labels_count: int | None,
        vocab_size: int | None = None,
    ) -> None:
        require_reference()
        self._task = task
        self._method = adapter.method if adapter is not None else "LORA"
        self._sentence = checkpoint.sentence if task.pooled else None
        self.after_model = dict(checkpoint.tensors) if self._sentence is not None else {}
        trained_for = _trained_for(task, adapter)
        if adapter is not None:
            labels_count = count_labels(trained_for, checkpoint.config, [adapter])
        with quiet():
            self._model = _load_base(checkpoint, trained_for, labels_count)
            if vocab_size is not None:  # the adapter has values for every row, old ones too
                self._model.resize_token_embeddings(vocab_size, mean_resizing=False)
            self._replaced = WholeTensors((), (), ())
            if adapter is not None and adapter.format == DELTA:
                self._replaced = load_whole(self._model, adapter)
            elif adapter is not None:
                self._model = _load_adapter(self._model, adapter)
        # not through PEFT's wrapper: for question answering, it drops token_type_ids
        wrapped = adapter is not None and adapter.format != DELTA
        inner = self._model.get_base_model() if wrapped else self._model
        module = task.part_of(inner)
        if trained_for is not task:
            module = getattr(inner, inner.base_model_prefix)
        outputs = task.outputs if self._sentence is None else ("last_hidden_state",)
        self._runner = TorchRunner(module, task.inputs, outputs)

    @property
    def whole(self) -> Any:
        """The model with PEFT around it, where there is an adapter."""
        return self._model

    @property
    def model(self) -> Any:
        """The module that is called, the adapter's layers in it."""
        return self._runner.module

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Return the task's output for `feeds`, float32; of a decoder, without a cache."""
        fields = self._runner.run(feeds)
        if self._sentence is not None:
            (states,) = fields.values()
            mask = feeds["attention_mask"]
            return sentence_embedding(self._sentence, self.after_model, states, mask)
        return np.asarray(self._task.result(fields), np.float32)

    def encode(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Return the output of an encoder-decoder's encoder for `feeds`, float32."""
        import torch

        inputs = {name: torch.from_numpy(feeds[name]) for name in self._task.inputs}
        with torch.inference_mode(), quiet():
            output = self.model.get_encoder()(**inputs, return_dict=True)
        return np.asarray(output.last_hidden_state.float().numpy(), np.float32)

    @contextlib.contextmanager
    def without_low_rank(self) -> Iterator[None]:
        """Set the LoRA scale to 0, keeping saved heads and biases, until the block ends.

        PEFT's layers of other methods are disabled instead.

        DoRA divides by the length of the rows of ``W0 + s·B A``, which is 0 where a row of W0 is 0
        (a padding token's); its scale is small enough to change nothing else in float32.
        """
        if self._replaced.names:
            with without_whole(self._replaced):
                yield
            return
        if self._method != "LORA":
            with disabled_layers(self._model):
                yield
            return
        layers = _scaled_layers(self._model)
        before = [dict(layer.scaling) for layer in layers]
        for layer in layers:
            scale = _DORA_SCALE if len(getattr(layer, "lora_magnitude_vector", ())) else 0.0
            layer.scaling = dict.fromkeys(layer.scaling, scale)
        try:
            yield
        finally:
            for layer, scaling in zip(layers, before, strict=True):
                layer.scaling = scaling

    def close(self) -> None:
        """Free the model's memory."""
        del self._model
        self._runner.close()


def _trained_for(task: Task, adapter: Adapter | None) -> Task:
    """Return the task whose model class the adapter's names belong to."""
    if adapter is None or adapter.task_type is None or task.peft_type == adapter.task_type:
        return task
    known = [row for row in tasks.TASKS.values() if row.peft_type == adapter.task_type]
    return known[0] if known and task.features else task


def _load_base(checkpoint: Checkpoint, task: Task, labels_count: int | None) -> Any:
    import torch

    settings = {"num_labels": labels_count} if labels_count is not None else {}
    try:
        with bare_folder(checkpoint) as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a head that the files lack is the same in every model
            model = _class_for(checkpoint, task, folder).from_pretrained(
                folder,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                **settings,
            )
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"transformers cannot load {checkpoint.source!r} for {task.name}: {text}"
        raise CheckpointError(msg, hint="To skip the comparison, pass --no-verify.") from error
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = checkpoint.config.get("pad_token_id")
    return model.eval()


def _class_for(checkpoint: Checkpoint, task: Task, folder: Path) -> Any:
    """Return the task's auto class, or where it has none of the model the checkpoint's own class.

    A vision-language model takes text as a decoder does, but is none of the auto class's.
    """
    import transformers

    from lora_export.graph.trace.transformers_private import has_auto_model

    auto = getattr(transformers, task.auto_class)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    architectures = checkpoint.config.get("architectures") or [""]
    own = getattr(transformers, str(architectures[0]), None)
    return auto if own is None or has_auto_model(auto, config) else own


def _load_adapter(model: Any, adapter: Adapter) -> Any:
    import peft

    adapter = to_reference_names(adapter, model.state_dict(), model.base_model_prefix)
    written = adapter.format != "peft" or adapter.renamed
    as_lora = adapter.method == "LORA" or (written and not adapter.computed)
    try:
        with tempfile.TemporaryDirectory(prefix="lora-export-") as temporary:
            folder = adapter.folder
            if written:
                folder = Path(temporary)
                if adapter.computed:
                    write_method(adapter, folder)
                else:
                    write_peft(adapter, folder, conv1d=_has_conv1d(model))
            config = peft.PeftConfig.from_pretrained(str(folder))
            if adapter.residual is not None:
                config.init_lora_weights = True  # else PEFT takes the first update off once more
            wrapped = peft.PeftModel.from_pretrained(model, str(folder), config=config)
            if as_lora:
                _require_loaded(wrapped, adapter)
            else:
                require_every_tensor(wrapped, folder, adapter.source)
    except AdapterError:
        raise
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"PEFT cannot load adapter {adapter.source!r}: {text}"
        raise AdapterError(msg, hint="To skip the comparison, pass --no-verify.") from error
    wrapped.eval()
    if not written and adapter.factor != 1:
        for layer in _scaled_layers(wrapped):
            layer.scaling = {key: value * adapter.factor for key, value in layer.scaling.items()}
    return wrapped


def _has_conv1d(model: Any) -> bool:
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _scaled_layers(model: Any) -> list[Any]:
    """Return the layers that PEFT has added, by the scales that they hold."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "scaling", None), dict) and module.scaling
    ]


def _require_loaded(wrapped: Any, adapter: Adapter) -> None:
    """Require that the reference holds each factor of the adapter; PEFT only warns."""
    state = wrapped.state_dict()
    for update in adapter.low_rank:
        for letter, factor in (("A", update.a), ("B", update.b)):
            suffix = (
                f"{update.module}.lora_embedding_{letter}.default"
                if update.embedding
                else f"{update.module}.lora_{letter}.default.weight"
            )
            held = [
                value.float().numpy()
                for key, value in state.items()
                if key.replace(".base_layer", "").endswith(suffix)  # wrappers of one module nest
            ]
            expected = to_float32(read_all(factor))
            if not any(np.array_equal(value, expected) for value in held):
                msg = f"PEFT did not load {update.module!r} of adapter {adapter.source!r}"
                raise AdapterError(msg, hint="Is --task the task that it was trained for?")
