"""The figures of times: what a few slow runs do to them."""

from __future__ import annotations

import re

from lora_export.report.figures import SampleMark, sample_figure


def widths(drawing: str) -> list[float]:
    """Return how wide the middle half of each row is drawn, of 360."""
    found = re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)" class="half"', drawing)
    return [float(end) - float(begin) for begin, end in found]


def test_a_few_slow_runs_do_not_press_the_others_flat():
    samples = [1.0 + at / 100 for at in range(40)]
    calm = sample_figure([SampleMark("a", samples)], "times")
    slow = sample_figure([SampleMark("a", [*samples, 50.0, 80.0])], "times")
    assert "off the scale" not in calm
    assert " ms, 2 off the scale" in slow
    assert widths(slow)[0] > 40
    assert "80 ms" not in slow


def test_a_row_that_is_slower_as_a_whole_is_on_the_scale():
    rows = [SampleMark("a", [1.0, 1.1, 1.2, 1.3]), SampleMark("b", [40.0, 41.0, 42.0, 43.0])]
    drawing = sample_figure(rows, "times")
    assert "off the scale" not in drawing
    assert "40 ms" in drawing


def test_equal_and_single_samples_are_drawn():
    for samples in ([2.0], [2.0] * 9):
        assert "2 ms" in sample_figure([SampleMark("a", samples)], "times")
