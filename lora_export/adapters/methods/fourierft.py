"""FourierFT: an update given by a few entries of its spectrum (arXiv 2405.03003, section 3.1).

    ΔW = scaling · Re(ifft2(F))         F [out, in], n entries of fourierft_spectrum, else 0

Where the entries are follows from ``random_loc_seed``: the first n of ``torch.randperm(out · in)``.
Rows of ΔW are computed block by block: first along the rows' axis, for the n entries alone, then an
inverse transform of each row, in float64. As in PEFT 0.21, ``peft/tuners/fourierft/layer.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Computed
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method, rows_of
from lora_export.adapters.methods.torch_random import first_of_permutation
from lora_export.adapters.pattern_settings import setting_of
from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.canonical import Transform
    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter

__all__ = ["FOURIERFT"]

_SPECTRUM: Final = "fourierft_spectrum"
_COUNT: Final = 1000
_SCALING: Final = 150.0
_SEED: Final = 777
_MATRIX: Final = 2


def _read(module: AdaptedModule) -> Iterator[Computed]:
    (spectrum,) = module.require(_SPECTRUM)
    config = module.config
    count = setting_of(
        config, "n_frequency_pattern", module.path, module.setting("n_frequency", _COUNT)
    )
    if spectrum.shape != (count,):
        raise module.error(
            f"{_SPECTRUM} is {list(spectrum.shape)}, its config says n_frequency: {shown(count)}"
        )
    scaling = float(module.setting("scaling", _SCALING))
    seed = module.setting("random_loc_seed", _SEED)

    def misfit(weight: Parameter) -> str | None:
        shape = weight.shape
        if len(shape) != _MATRIX or shape[0] * shape[1] < count:
            return f"the update has {count} frequencies, the weight is {list(shape)}"
        return None

    def transform(weight: Parameter) -> Transform:
        outputs, inputs = weight.shape[::-1] if weight.module_type == "Conv1D" else weight.shape
        values = read_finite(spectrum).astype(np.float64)
        places = first_of_permutation(seed, outputs * inputs, count)
        line, column = places // inputs, places % inputs

        def rows(start: int, stop: int) -> Float32Array:
            index = np.arange(start, stop)[:, None]
            angle = (index * line[None]) % outputs * (2 * np.pi / outputs)
            waves = np.exp(1j * angle) * values  # (n, frequencies)
            half = np.zeros((inputs, stop - start), np.complex128)
            np.add.at(half, column, waves.T)
            delta = np.fft.ifft(half.T, axis=1).real
            return np.asarray(delta * (scaling / outputs), np.float32)

        return rows_of(weight, rows)

    yield Computed(f"{module.path}.weight", "FOURIERFT", (spectrum,), misfit, transform)


FOURIERFT: Final = Method("FourierFT", frozenset({_SPECTRUM}), _read)
