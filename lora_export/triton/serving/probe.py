"""A check that Triton's Python backend and NumPy work together.

The backend is compiled against a layout of NumPy's structures. One that was compiled against
NumPy 1 (Triton 2.51 and others) reads under NumPy 2 the size of every element as zero: requests
come in as repetitions of their first byte, answers go out empty, and nothing is said (tried).
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton's own

__all__ = ["require_readable_tensors"]


def require_readable_tensors() -> None:
    """Raise where a tensor does not come through Triton as it was.

    Raises:
        TritonModelException: The NumPy that is installed is too new for this server.
    """
    sent = np.arange(1, 6, dtype=np.int64)
    capsule = pb_utils.Tensor("probe", sent).to_dlpack()
    found = pb_utils.Tensor.from_dlpack("probe", capsule).as_numpy()
    if not np.array_equal(sent, found):
        msg = (
            f"this server's Python backend cannot read tensors of NumPy {np.__version__}: "
            'install "numpy<2" for it'
        )
        raise pb_utils.TritonModelException(msg)
