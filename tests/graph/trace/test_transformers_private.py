"""The losses of training are imported without scipy, and work as they did."""

from __future__ import annotations

from tests.cli.running import python

IMPORT = """
import sys
from lora_export.graph.trace.transformers_private import import_losses
import_losses()
import transformers.modeling_utils
print("scipy.optimize" in sys.modules)
from transformers.loss import loss_for_object_detection as losses
from transformers.utils import is_scipy_available
print(losses.is_scipy_available is is_scipy_available)
rows, columns = losses.linear_sum_assignment([[4.0, 1.0], [2.0, 9.0]])
print(list(rows), list(columns), "scipy.optimize" in sys.modules)
"""


def test_losses_are_imported_without_scipy_until_they_call_it() -> None:
    done = python("-c", IMPORT)
    assert done.code == 0, done.err
    assert done.out.replace("np.int64(", "").replace(")", "").split("\n")[:3] == [
        "False",
        "True",
        "[0, 1] [1, 0] True",
    ]
