"""The drop of a metric, in its own direction."""

from __future__ import annotations

import math

import pytest

from lora_export.core.reports.parity_report import DatasetRow
from lora_export.verification.datasets.labelled import CLASSES
from lora_export.verification.datasets.language import TEXTS
from lora_export.verification.loss.metric_drop import metric_drop


def row(**figures) -> DatasetRow:
    return DatasetRow(metric="m", count=10, verdict="pass", **figures)


def test_a_lower_accuracy_is_a_drop():
    found = metric_drop(
        row(reference=0.9, graph=0.88, difference=-0.02, difference_interval=(-0.05, 0.01)),
        CLASSES.metrics["accuracy"],
    )
    assert found.value == pytest.approx(0.02)
    assert found.interval == pytest.approx((-0.01, 0.05))


def test_a_higher_perplexity_is_a_drop_as_a_share():
    found = metric_drop(
        row(reference=20.0, graph=21.0, difference=1.0, difference_interval=(0.5, 1.5)),
        TEXTS.metrics["perplexity"],
    )
    assert found.value == pytest.approx(0.05)
    assert found.interval == pytest.approx((0.025, 0.075))


@pytest.mark.parametrize("missing", ["difference", "difference_interval", "reference"])
def test_a_score_that_is_not_finite_drops_by_no_number(missing):
    figures = {"reference": 1.0, "difference": 0.0, "difference_interval": (0.0, 0.0)}
    found = metric_drop(row(**{**figures, missing: None}), CLASSES.metrics["accuracy"])
    assert math.isnan(found.value)
